import pytest
from typer.testing import CliRunner

from foveate.cli import app
from foveate.measure import suite
from tests.measure.folders import picture, questions, save_llava


@pytest.fixture(scope="session")
def llava_folder(tmp_path_factory):
    return save_llava(tmp_path_factory.mktemp("llava"))


@pytest.fixture
def words_suite(monkeypatch):
    monkeypatch.setattr(suite, "SUITES", {"words": questions})


@pytest.fixture
def image_file(tmp_path):
    path = tmp_path / "image.png"
    picture().save(path)
    return path


@pytest.fixture
def run():
    def invoke(*arguments):
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    return invoke
