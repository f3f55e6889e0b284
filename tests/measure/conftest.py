import pytest

from foveate.measure.eval import suites as suite
from foveate.measure.loading import load_model
from tests.measure.folders import questions, save_llava


@pytest.fixture(scope="session")
def llava_folder(tmp_path_factory):
    return save_llava(tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="session")
def loaded(llava_folder):
    return load_model(str(llava_folder), device="cpu")


@pytest.fixture
def words_suite(monkeypatch):
    monkeypatch.setattr(suite, "SUITES", {"words": questions})
