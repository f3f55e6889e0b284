import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from foveate.learn.errors import RewardError
from foveate.learn.glimpse_plus.rewards import Judge, Reply, anls, exact_match, numeric, reward_by_name, score


def reply(given, wanted, question="what?"):
    return Reply(question, given, wanted)


@pytest.mark.parametrize(
    ("given", "wanted", "worth"), [(" Red\n", "red", 1), ("red", "dark red", 0), ("", "", 1), ("red.", "red", 0)]
)
def test_exact_match_ignores_case_and_outer_space(given, wanted, worth):
    assert exact_match([reply(given, wanted)]) == [worth]


@pytest.mark.parametrize(
    ("given", "wanted", "worth"),
    [
        ("104", "100", 1),
        ("106", "100", 0),
        ("95%", "100", 1),
        ("1,000", "1000", 1),
        ("-100", "100", 0),
        ("0", "0", 1),
        ("0.01", "0", 0),
        ("about 100", "100", 0),
        ("nan", "100", 0),
        ("Red", "red", 1),
        ("12", "red", 0),
    ],
)
def test_numeric_is_relaxed_for_numbers_and_exact_for_words(given, wanted, worth):
    assert numeric([reply(given, wanted)]) == [worth]


@pytest.mark.parametrize(
    ("given", "wanted", "worth"),
    [("kitten", "sitting", 1 - 3 / 7), ("abcd", "wxyz", 0), ("Paris ", "paris", 1), ("", "a", 0), ("", "", 1)],
)
def test_anls(given, wanted, worth):
    assert anls([reply(given, wanted)]) == [pytest.approx(worth)]


def test_anls_under_a_half_is_nothing():
    assert anls([reply("abxyz", "abcde")]) == [0]
    assert anls([reply("abcyz", "abcde")]) == [pytest.approx(0.6)]


def twice(replies):
    return [2.0] * len(replies)


def too_few(replies):
    return [1.0]


def not_a_number(replies):
    return [float("nan")] * len(replies)


def test_a_function_by_name():
    assert score(reward_by_name(f"{__name__}:twice"), [reply("a", "b")]) == [2.0]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("exakt", "exact_match, numeric, anls, judge, by_prompt"),
        ("no.such.module:f", "cannot be imported"),
        ("math:no_such_name", "cannot be imported"),
        ("math:pi", "no function"),
        ("judge", "under `judge`"),
        ("by_prompt", "under `judge`"),
    ],
)
def test_a_reward_that_is_not_there(name, told):
    with pytest.raises(RewardError, match=told):
        reward_by_name(name)


@pytest.mark.parametrize(("reward", "told"), [(too_few, "1 figures for 2"), (not_a_number, "no finite number")])
def test_a_reward_that_gives_other_than_figures(reward, told):
    with pytest.raises(RewardError, match=told):
        score(reward, [reply("a", "b")] * 2)


class Server(HTTPServer):
    """Says `said` in turn; the last one again and again. A number is a status."""

    def __init__(self, said):
        super().__init__(("127.0.0.1", 0), Handler)
        self.said, self.asked, self.headers = list(said), [], []


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, body))
        self.server.headers.append(self.headers)
        said = self.server.said.pop(0) if len(self.server.said) > 1 else self.server.said[0]
        if isinstance(said, int):
            self.send_error(said)
            return
        text = said(body) if callable(said) else said
        self.send_response(200)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_):
        pass


def says(content):
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": content}}]})


@pytest.fixture
def serve():
    servers = []

    def start(*said):
        server = Server(said)
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return server, f"http://127.0.0.1:{server.server_port}/v1"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_the_judge_scores_each_answer(serve):
    # the score depends on the answer, so that one given to the wrong answer would show
    server, url = serve(lambda body: says(" 0.25 " if "given red" in body["messages"][0]["content"] else "Score: 1"))
    replies = [reply("given red", "blue"), reply("given blue", "blue"), reply("given red", "red")]
    assert Judge(url, "some-judge", parallel=2)(replies) == [0.25, 1.0, 0.25]
    path, body = server.asked[0]
    assert path == "/v1/chat/completions"
    assert (body["model"], body["temperature"]) == ("some-judge", 0)
    assert "between 0 and 1" in body["messages"][0]["content"]
    assert all("what?" in body["messages"][0]["content"] for _, body in server.asked)


def test_the_key_comes_from_the_environment(serve, monkeypatch):
    server, url = serve(says("1"))
    monkeypatch.setenv("SOME_KEY", "abc")
    Judge(url, key_variable="SOME_KEY")([reply("a", "b")])
    Judge(url, key_variable="NO_SUCH_KEY")([reply("a", "b")])
    assert [one["Authorization"] for one in server.headers] == ["Bearer abc", None]


def test_a_busy_judge_is_asked_again(serve):
    server, url = serve(503, 429, says("0.5"))
    assert Judge(url, retries=2, pause=0)([reply("a", "b")]) == [0.5]
    assert len(server.asked) == 3


def test_a_judge_that_stays_busy_is_an_error(serve):
    server, url = serve(503)
    with pytest.raises(RewardError, match="after 3 attempts: 503"):
        Judge(url, retries=2, pause=0)([reply("a", "b")])
    assert len(server.asked) == 3


def test_a_refusal_is_not_repeated(serve):
    server, url = serve(401)
    with pytest.raises(RewardError, match="401"):
        Judge(url, pause=0)([reply("a", "b")])
    assert len(server.asked) == 1


@pytest.mark.parametrize("said", ["good", "1.5", "0.5 or so", "-1", "", "2", "10", "1e-1"])
def test_a_judge_that_gives_no_score_is_an_error(serve, said):
    _, url = serve(says(said))
    with pytest.raises(RewardError, match="between 0 and 1"):
        Judge(url, pause=0)([reply("a", "b")])


@pytest.mark.parametrize("text", ["no json", '{"choices": []}', "[]"])
def test_a_server_that_is_no_chat_server_is_an_error(serve, text):
    _, url = serve(text)
    with pytest.raises(RewardError, match="no chat completion"):
        Judge(url, pause=0)([reply("a", "b")])


def test_a_judge_that_takes_too_long_is_an_error(serve):
    release = threading.Event()
    _, url = serve(lambda body: (release.wait(10), says("1"))[1])
    with pytest.raises(RewardError, match="timed out"):
        Judge(url, timeout=0.2, retries=0)([reply("a", "b")])
    release.set()


def test_nobody_there():
    with pytest.raises(RewardError, match="after 1 attempts"):
        Judge("http://127.0.0.1:9/v1", retries=0)([reply("a", "b")])


@pytest.mark.parametrize("wrong", [{"url": "localhost:8000"}, {"timeout": 0}, {"retries": -1}, {"parallel": 0}])
def test_a_judge_that_makes_no_sense(wrong):
    with pytest.raises(RewardError):
        Judge(**{"url": "http://localhost/v1", **wrong})


def test_by_prompt_judges_only_free_answers(serve):
    server, url = serve(says("0.75"))
    short = "what colour?\nAnswer the question using a single word or phrase."
    replies = [reply("red", "Red", short), reply("it is red", "red", "what colour?"), reply("blue", "red", short)]
    assert list(reward_by_name("by_prompt", Judge(url))(replies)) == [1.0, 0.75, 0.0]
    assert len(server.asked) == 1
