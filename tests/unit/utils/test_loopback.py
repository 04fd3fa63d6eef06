"""utils/loopback.py: who is answered, and what is refused."""
import http.client
import json
import threading

import pytest

from utils.loopback import LoopbackServer, as_json


@pytest.fixture
def server():
    with LoopbackServer(0) as server:
        server.routes = {("GET", "words"): (0, lambda query, body: as_json(query)),
                         ("POST", "words"): (9, lambda query, body: ("text/plain", body[::-1])),
                         ("GET", "wrong"): (0, lambda query, body: int("no\nnumber")),
                         ("GET", "broken"): (0, lambda query, body: 1 / 0)}
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(server, place, body=None, secret=None, **headers):
    """(status, headers, bytes) of a request."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    path = f"/{server.secret if secret is None else secret}/{place}"
    connection.request("GET" if body is None else "POST", path, body, {name.replace("_", "-"): value
                                                                        for name, value in headers.items()})
    response = connection.getresponse()
    return response.status, response.headers, response.read()


def refusal(server, place, *body, **headers):
    status, _, content = ask(server, place, *body, **headers)
    return status, json.loads(content)["error"]


def test_query_and_body_come_to_the_answer(server):
    assert server.url == f"http://127.0.0.1:{server.server_port}/{server.secret}/"
    status, headers, content = ask(server, "words?a=1&b=%C3%A4%20")
    assert (status, json.loads(content)) == (200, {"a": "1", "b": "ä "})
    assert "default-src 'self'" in headers["Content-Security-Policy"] and headers["Cache-Control"] == "no-store"
    assert ask(server, "words", b"a word.")[::2] == (200, b".drow a")


def test_server_is_bound_to_the_loopback_address(server):
    assert server.socket.getsockname()[0] == "127.0.0.1"


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "127.0.0.1:1"])
def test_names_of_this_machine_are_answered(server, host):  # ports differ behind a tunnel
    assert ask(server, "words", Host=host)[0] == 200


@pytest.mark.parametrize("host", ["evil.example", "evil.example:7860", "localhost.evil.example", "127.0.0.1.evil.example", "",
                                  "[::1]:1", "192.168.0.7"])
def test_other_names_are_refused(server, host):
    assert refusal(server, "words", Host=host) == (403, "this server is known as 127.0.0.1 or localhost, and nothing else.")


@pytest.mark.parametrize("secret", ["", "words", "%C3%A4"])
def test_request_without_the_secret_is_refused(server, secret):
    status, message = refusal(server, "words", secret=secret)
    assert status == 403 and "has printed" in message


def test_secret_is_another_one_each_time(server):
    with LoopbackServer(0) as other:
        assert other.secret != server.secret and len(other.secret) >= 16


@pytest.mark.parametrize("place", ["nothing", "words/..", "../words", "../../etc/passwd", "%2e%2e/words"])
def test_unknown_page_is_refused(server, place):
    assert refusal(server, place) == (404, "there is no such page.")


def test_method_that_a_page_has_not_is_refused(server):
    assert refusal(server, "wrong", b"body")[0] == 404


def test_body_that_is_too_long_is_refused_before_it_is_read(server):
    status, message = refusal(server, "words", None, Content_Length="10")
    assert status == 413 and "at most 0 MiB" in message
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    connection.putrequest("POST", f"/{server.secret}/words")
    connection.putheader("Content-Length", str(3 * 2 ** 20))
    connection.endheaders()  # and not one byte of the body
    response = connection.getresponse()
    assert response.status == 413 and "3.0 MiB were sent" in json.loads(response.read())["error"]


@pytest.mark.parametrize("length", ["-1", "many", "1e3"])
def test_length_that_is_no_number_is_refused(server, length):
    assert refusal(server, "words", Content_Length=length) == (400, "the length of the request is no number.")


def test_what_an_answer_refuses_comes_as_one_line(server):
    status, message = refusal(server, "wrong")
    assert status == 400 and message.startswith("invalid literal") and "\n" not in message


def test_error_of_the_program_is_told_to_its_terminal(server, capfd):
    assert refusal(server, "broken") == (500, "an error of the program: its terminal says more.")
    assert "ZeroDivisionError" in capfd.readouterr().err
    assert ask(server, "words")[0] == 200


def test_requests_are_not_written_to_the_console(server, capfd):
    ask(server, "words")
    assert capfd.readouterr() == ("", "")


def test_port_in_use_is_refused_in_a_line(server):
    with pytest.raises(ValueError, match=rf"^port {server.server_port} \(--port\) is in use on this machine: .*--port 0"):
        LoopbackServer(server.server_port)


@pytest.mark.parametrize("port", [-1, 70000])
def test_number_that_is_no_port_is_refused_in_a_line(port):
    with pytest.raises(ValueError, match=rf"^port {port} \(--port\) can not be had"):
        LoopbackServer(port)
