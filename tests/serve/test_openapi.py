"""schemathesis on the server's own description: each request made from it gets an answer of the form described."""

from __future__ import annotations

import pytest

schemathesis = pytest.importorskip("schemathesis")
pytestmark = pytest.mark.slow


def test_requests_made_from_the_description(server):
    from hypothesis import HealthCheck, given, settings
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance

    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    seen = set()
    for operation in schema.get_all_operations():
        operation = operation.ok()

        @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy())
        def ask(case):
            response = case.call(base_url=server.url, timeout=60)
            seen.add((case.operation.path, response.status_code))
            case.validate_response(
                response, checks=[not_a_server_error, content_type_conformance, response_schema_conformance]
            )

        ask()
    assert {path for path, _ in seen} >= {"/health", "/v1/models", "/v1/chat/completions"}
