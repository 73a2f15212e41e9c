"""JupyterLab in headless Chromium, as a reader has it: a server of its own, a page, and what both are asked in tests."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil

from helpers.files import ROOT

TOKEN = "t0k"
CHROMIUM = next(
    (
        path
        for name in ("chromium", "chromium-browser", "google-chrome")
        if (path := shutil.which(name))
    ),
    None,
)
WHY_NOT = "no chromium on this machine: the notebook was not opened in a browser (Debian, Ubuntu: apt install chromium)"
SCREENSHOTS = ROOT / "artifacts" / "screenshots"
READY = "window.jupyterapp?.shell.currentWidget?.context?.isReady"
KERNEL = """async () => {
  const session = window.jupyterapp.shell.currentWidget.sessionContext;
  await session.ready; await session.session.kernel.info; return session.session.kernel.id }"""
RUN_ALL = "async () => { await window.jupyterapp.commands.execute('notebook:run-all-cells') }"


SETTINGS = {  # cells out of sight stay in the page, and nothing asks about news
    "@jupyterlab/notebook-extension/tracker": {"windowingMode": "none"},
    "@jupyterlab/apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}


@contextlib.contextmanager
def jupyter_lab(folder: Path, **environment: str) -> Iterator[str]:
    """The address of a JupyterLab with settings of its own that shows `folder`."""
    private = folder.parent / "jupyter"
    names = ("CONFIG_DIR", "DATA_DIR", "RUNTIME_DIR")
    env = {
        **os.environ,
        **environment,
        **{f"JUPYTER_{name}": str(private / name) for name in names},
    }
    env |= {f"JUPYTERLAB_{name}_DIR": str(private / name) for name in ("SETTINGS", "WORKSPACES")}
    env |= {"IPYTHONDIR": str(private / "ipython"), "PYTHONPATH": str(ROOT)}
    for name, settings in SETTINGS.items():
        path = private / "SETTINGS" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(settings))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = {
        "ServerApp.ip": "127.0.0.1", "ServerApp.port": port, "ServerApp.port_retries": 0, "IdentityProvider.token": TOKEN,
        "ServerApp.root_dir": folder, "LabApp.expose_app_in_browser": True,
    }  # fmt: skip
    command = [sys.executable, "-m", "jupyter", "lab", "--no-browser", "--allow-root"]
    with (folder.parent / "lab.log").open("w") as log:
        server = subprocess.Popen(
            [*command, *(f"--{name}={value}" for name, value in options.items())],
            env=env,
            stdout=log,
            stderr=log,
        )
        try:
            _wait_for(port, server, folder.parent / "lab.log")
            yield f"http://127.0.0.1:{port}"
        finally:
            for process in [*psutil.Process(server.pid).children(recursive=True), server]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(signal.SIGKILL)
            server.wait()


def _wait_for(port: int, server: subprocess.Popen, log: Path) -> None:
    for _ in range(240):
        assert server.poll() is None, log.read_text()
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.5)
    raise AssertionError(f"JupyterLab did not start in 2 minutes: {log.read_text()}")


@contextlib.contextmanager
def chromium(width: int = 1400, height: int = 1000) -> Iterator:
    """A page of a headless Chromium; if the test fails, a screenshot of that moment is left."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"],
        )
        page = browser.new_page(viewport={"width": width, "height": height})
        try:
            yield page
        except BaseException:
            screenshot(page, "0_failure")
            raise
        finally:
            browser.close()


def open_notebook(page, address: str, path: str) -> str:
    """Open a notebook and wait for its kernel; gives the kernel's id."""
    page.goto(f"{address}/lab/tree/{path}?reset&token={TOKEN}")
    page.wait_for_function(READY, timeout=300_000)
    return page.evaluate(KERNEL)


def kill_kernel(address: str) -> None:
    """SIGKILL the only kernel of the server, as a machine out of memory does, and wait for the new one."""
    (kernel,) = json.load(urllib.request.urlopen(f"{address}/api/kernels?token={TOKEN}"))
    (process,) = [
        p
        for p in psutil.process_iter(["cmdline"])
        if any(kernel["id"] in part for part in p.info["cmdline"] or ())
    ]
    process.send_signal(signal.SIGKILL)
    for _ in range(120):
        time.sleep(0.5)
        fresh = [
            p
            for p in psutil.process_iter(["cmdline"])
            if any(kernel["id"] in part for part in p.info["cmdline"] or ())
        ]
        if fresh and fresh[0].pid != process.pid:
            return
    raise AssertionError("JupyterLab did not start another kernel")


def screenshot(page, name: str) -> None:
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}.png")
