import pytest

from foveate.measure.eval import suites as suite
from foveate.measure.loading import load_model
from tests.measure.folders import picture, questions, save_llava


@pytest.fixture(scope="session")
def llava_folder(tmp_path_factory):
    return save_llava(tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="session")
def loaded(llava_folder):
    return load_model(str(llava_folder), device="cpu")


@pytest.fixture
def words_suite(monkeypatch):
    monkeypatch.setattr(suite, "SUITES", {"words": questions})


@pytest.fixture
def pictures(tmp_path):
    """A folder of five images, two of them in a folder of its own, beside a file that is none."""
    folder = tmp_path / "pictures"
    (folder / "more").mkdir(parents=True)
    (folder / "notes.txt").write_text("no image")
    for number, name in enumerate(["a.png", "b.jpg", "c.PNG", "more/d.bmp", "more/e.webp"]):
        picture(number).save(folder / name)
    return folder
