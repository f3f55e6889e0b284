"""What a family refuses a method is tested with the family, and left out of the laws."""

import pytest

from tests.models.build import AVERAGED


@pytest.fixture(autouse=True)
def leave_out_what_is_refused(request):
    asked = getattr(getattr(request.node, "callspec", None), "params", {})
    if asked.get("method") == "glimpseprune" and (asked.get("family"), asked.get("layout")) in AVERAGED:
        pytest.skip("refused: see test_averaged_tokens_are_refused")
