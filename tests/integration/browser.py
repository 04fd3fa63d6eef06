"""A headless Chromium, driven through pipes by its own protocol (Chrome DevTools): no package is needed for it."""
import base64
import fcntl
import json
import os
import shutil
import subprocess
import sys
import time

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
PATIENCE = 120  # seconds until something that is waited for counts as not coming
# Chromium reads its orders from descriptor 3 and answers on 4
START = "import os, sys; [os.dup2(int(sys.argv[i]), 2 + i) for i in (1, 2)]; os.execv(sys.argv[3], sys.argv[3:])"


class Browser:
    """One page.

    Args:
        profile: folder of its own for what the browser writes.
        size: (width, height) of the window in pixels.

    Attributes:
        requests: addresses that the page has asked for.
        problems: what it wrote to the console as errors, and errors of its scripts.
    """

    def __init__(self, profile, size=(1280, 900)):
        (order_end, self._orders), (self._answers, answer_end) = os.pipe(), os.pipe()
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (order_end, answer_end)]
        self._process = subprocess.Popen(
            [sys.executable, "-c", START, *map(str, ends), CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu",
             "--remote-debugging-pipe", "--disable-background-networking", "--no-first-run", f"--user-data-dir={profile}"],
            pass_fds=ends, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for end in (order_end, answer_end, *ends):
            os.close(end)
        self._number, self._rest, self._session = 0, b"", None
        self.requests, self.problems = [], []
        target = self.order("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.order("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.order(f"{domain}.enable")
        self.order("Emulation.setDeviceMetricsOverride", width=size[0], height=size[1], deviceScaleFactor=1, mobile=False)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._process.kill()
        self._process.wait()
        os.close(self._orders)
        os.close(self._answers)

    def order(self, method, **params):
        """Send an order of the protocol; gives its result. What happens on the page meanwhile is kept."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        message |= {"sessionId": self._session} if self._session else {}
        os.write(self._orders, json.dumps(message).encode() + b"\0")
        while (answer := self._read()).get("id") != self._number:
            self._notice(answer.get("method"), answer.get("params"))
        assert "error" not in answer, answer
        return answer["result"]

    def _read(self):
        while b"\0" not in self._rest:
            part = os.read(self._answers, 2 ** 20)
            assert part, "the browser has ended"
            self._rest += part
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def _notice(self, event, params):
        if event == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif event == "Runtime.exceptionThrown":
            self.problems.append(params["exceptionDetails"].get("exception", {}).get("description", "an exception"))
        elif event == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.problems.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")

    def wait_for_event(self, method, **params):
        """Until something happens with these parameters, from the last order on."""
        while (answer := self._read()).get("method") != method or not params.items() <= answer["params"].items():
            self._notice(answer.get("method"), answer.get("params"))

    def open(self, url):
        self.order("Page.navigate", url=url)

    def value(self, script):
        """What an expression of JavaScript gives, on the page."""
        answer = self.order("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait_for(self, script):
        """Until an expression is true."""
        end = time.monotonic() + PATIENCE
        while not self.value(script):
            assert time.monotonic() < end, f"still not: {script}"
            time.sleep(0.05)

    def place(self, selector, across=0.5, down=0.5):
        """A point of an element, shares from its left and its top, in pixels of the window."""
        box = self.value(f"(({{x, y, width, height}}) => [x, y, width, height])"
                         f"(document.querySelector({json.dumps(selector)}).getBoundingClientRect())")
        return box[0] + across * box[2], box[1] + down * box[3]

    def drag(self, *points):
        """Press the mouse at the first point, move it along the others, and let go; of one point, click."""
        for kind, (x, y) in (("mousePressed", points[0]), *(("mouseMoved", point) for point in points[1:]),
                             ("mouseReleased", points[-1])):
            self.order("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1)

    def click(self, selector):
        self.drag(self.place(selector))

    def screenshot(self, path):
        path.write_bytes(base64.b64decode(self.order("Page.captureScreenshot")["data"]))
