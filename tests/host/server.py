"""A stand-in back end that serves the real front end, with the pack's real node definitions and routes.

It answers what the front end asks of a ComfyUI server and runs no prompt: it notes what was posted to `/prompt`, and
a test sends the messages of a run itself. `python tests/host/server.py --frontend STATIC --data FOLDER` prints its
address as a line of JSON. Under `/standin/` it takes orders from tests:

    POST send      {"type", "data"}                  a message to every open page
    POST rule      {"path", "status", "delay"}       how requests whose path contains `path` are answered; {} clears.
                   A rule with "json" gives the answer itself
    GET  requests                                    [method, path, body] of every request so far
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import sys
import types
import uuid
from pathlib import Path
from typing import Any

from aiohttp import WSMsgType, web

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from host.core_nodes import CORE_NODES  # noqa: E402

PACK = "seamless-vae"  # the name of the folder in custom_nodes
MODEL_FOLDERS = ("vae", "checkpoints", "diffusers")


def host_modules(data: Path, routes: web.RouteTableDef) -> None:
    """Put in place what the pack imports of the host: where models are, and the server."""
    folder_paths = types.ModuleType("folder_paths")
    folders = {name: data / "models" / name for name in MODEL_FOLDERS}
    for folder in (*folders.values(), *(data / name for name in ("input", "output", "temp", "userdata"))):
        folder.mkdir(parents=True, exist_ok=True)

    def filename_list(kind: str) -> list[str]:
        return sorted(str(p.relative_to(folders[kind])) for p in folders[kind].rglob("*") if p.is_file())

    def full_path(kind: str, name: str) -> str | None:
        path = folders[kind] / name
        return str(path) if path.is_file() else None

    def full_path_or_raise(kind: str, name: str) -> str:
        path = full_path(kind, name)
        if path is None:
            raise FileNotFoundError(f"Model in folder '{kind}' with filename '{name}' not found.")
        return path

    contents: dict[str, Any] = {
        "models_dir": str(data / "models"),
        "folder_names_and_paths": {name: ([str(path)], {".safetensors", ".ckpt"}) for name, path in folders.items()},
        "get_filename_list": filename_list,
        "get_full_path": full_path,
        "get_full_path_or_raise": full_path_or_raise,
        "get_folder_paths": lambda kind: [str(folders[kind])],
        "get_input_directory": lambda: str(data / "input"),
        "get_output_directory": lambda: str(data / "output"),
        "get_user_directory": lambda: str(data / "user"),
        "get_temp_directory": lambda: str(data / "temp"),
    }
    folder_paths.__dict__.update(contents)
    server = types.ModuleType("server")
    server.PromptServer = types.SimpleNamespace(instance=types.SimpleNamespace(routes=routes))  # type: ignore[attr-defined]
    sys.modules.update({"folder_paths": folder_paths, "server": server})


def load_pack() -> types.ModuleType:
    """The pack, loaded from its file as the host does it."""
    name = str(ROOT)
    spec = importlib.util.spec_from_file_location(name, ROOT / "__init__.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def definition(name: str, node: type, display_name: str, module: str) -> dict[str, Any]:
    """An entry of `/object_info`."""
    inputs = node.INPUT_TYPES()  # type: ignore[attr-defined]
    outputs = list(node.RETURN_TYPES)  # type: ignore[attr-defined]
    return {
        "input": inputs,
        "input_order": {kind: list(group) for kind, group in inputs.items()},
        "output": outputs,
        "output_is_list": [False] * len(outputs),
        "output_name": list(getattr(node, "RETURN_NAMES", outputs)),
        "output_tooltips": list(getattr(node, "OUTPUT_TOOLTIPS", ())),
        "name": name,
        "display_name": display_name,
        "description": getattr(node, "DESCRIPTION", ""),
        "python_module": module,
        "category": getattr(node, "CATEGORY", "sd"),
        "output_node": bool(getattr(node, "OUTPUT_NODE", False)),
        "search_aliases": list(getattr(node, "SEARCH_ALIASES", ())),
    }


def definitions(pack: types.ModuleType) -> dict[str, Any]:
    names = pack.NODE_DISPLAY_NAME_MAPPINGS
    core = {name: definition(name, node, name, "nodes") for name, node in CORE_NODES.items()}
    ours = {
        name: definition(name, node, names.get(name, name), f"custom_nodes.{PACK}")
        for name, node in pack.NODE_CLASS_MAPPINGS.items()
    }
    return {**core, **ours}


def translations() -> dict[str, Any]:
    """What the host makes of `locales/`: main.json at the top, the other files under their names."""
    merged: dict[str, Any] = {}
    for folder in sorted((ROOT / "locales").glob("*/")):
        language = merged.setdefault(folder.name, {})
        for kind in ("main", "nodeDefs", "commands", "settings"):
            file = folder / f"{kind}.json"
            if file.is_file():
                content = json.loads(file.read_text(encoding="utf-8"))
                language.update(content if kind == "main" else {kind: content})
    return merged


class Backend:
    """The routes of a ComfyUI server that the front end needs, and the state behind them."""

    def __init__(self, static: Path, data: Path) -> None:
        self.static, self.data = static, data
        self.sockets: dict[str, web.WebSocketResponse] = {}
        self.requests: list[tuple[str, str, str]] = []
        self.rules: list[dict[str, Any]] = []
        self.pack_routes = web.RouteTableDef()
        host_modules(data, self.pack_routes)
        self.pack = load_pack()
        self.web = (ROOT / self.pack.WEB_DIRECTORY).resolve()

    def application(self) -> web.Application:
        api = web.Application(middlewares=[self.noted])
        self.add_routes(api)
        app = web.Application(middlewares=[self.noted], client_max_size=2**28)
        self.add_routes(app)
        app.add_subapp("/api", api)
        app.router.add_post("/standin/send", self.order_send)
        app.router.add_post("/standin/rule", self.order_rule)
        app.router.add_get("/standin/requests", self.order_requests)
        app.router.add_static(f"/extensions/{PACK}", self.web)
        app.router.add_get("/", self.index)
        app.router.add_static("/", self.static)
        return app

    def add_routes(self, app: web.Application) -> None:
        app.add_routes(self.pack_routes)
        fixed: dict[str, Any] = {
            "/users": {"storage": "server", "migrated": True},
            "/embeddings": [],
            "/features": {"supports_preview_metadata": False, "max_upload_size": 2**28},
            "/workflow_templates": {},
            "/global_subgraphs": {},
            "/node_replacements": {},
            "/jobs": {"jobs": [], "pagination": {"offset": 0, "limit": 200, "total": 0, "has_more": False}},
            "/queue": {"queue_running": [], "queue_pending": []},
            "/history": {},
            "/experiment/models": [],
            "/userdata/comfy.templates.json": [],
            "/extensions": self.scripts(),
            "/i18n": translations(),
            "/system_stats": {
                "system": {"os": "posix", "ram_total": 2**34, "ram_free": 2**33, "comfyui_version": "0.3.64"}
                | {"python_version": "3.11", "pytorch_version": "2.13", "embedded_python": False, "argv": []},
                "devices": [],
            },
        }
        for path, content in fixed.items():
            app.router.add_get(path, self.always(content))
        add = app.router.add_route
        for path in ("/user.css", "/userdata/user.css"):
            add("GET", path, self.no_style)
        add("GET", "/object_info", self.object_info)
        add("GET", "/ws", self.websocket)
        add("GET", "/prompt", self.always({"exec_info": {"queue_remaining": 0}}))
        add("POST", "/prompt", self.prompt)
        for path in ("/queue", "/interrupt", "/free", "/history"):
            add("POST", path, self.always({}))
        add("GET", "/settings", self.settings)
        add("POST", "/settings", self.store_settings)
        add("GET", "/settings/{key}", self.setting)
        add("POST", "/settings/{key}", self.store_setting)
        add("GET", "/userdata", self.always([]))
        add("GET", "/v2/userdata", self.always([]))
        add("GET", "/userdata/{file}", self.read_userdata)
        add("POST", "/userdata/{file}", self.write_userdata)
        add("GET", "/view", self.view)
        add("POST", "/upload/image", self.upload)

    def scripts(self) -> list[str]:
        own = sorted(file.relative_to(self.web).as_posix() for file in self.web.rglob("*.js"))
        built_in = sorted(file.relative_to(self.static).as_posix() for file in self.static.glob("extensions/**/*.js"))
        return [*(f"/{path}" for path in built_in), *(f"/extensions/{PACK}/{path}" for path in own)]

    def always(self, content: Any) -> Any:
        async def answer(_: web.Request) -> web.Response:
            return web.json_response(content)

        return answer

    @web.middleware
    async def noted(self, request: web.Request, handler: Any) -> web.StreamResponse:
        """Note a request, and answer as the rules say."""
        path = request.path
        if path.startswith("/standin/") or "standin.noted" in request:
            return await handler(request)
        request["standin.noted"] = True
        if not path.startswith(("/assets", "/extensions", "/fonts", "/scripts")):
            body = await request.text() if request.content_type == "application/json" and request.can_read_body else ""
            self.requests.append((request.method, request.path_qs, body))
        for rule in self.rules:
            if rule["path"] in path:
                await asyncio.sleep(rule.get("delay", 0))
                if rule.get("status", 200) != 200:
                    return web.Response(status=rule["status"], text="refused by the test")
                if "json" in rule:
                    return web.json_response(rule["json"])
        response = await handler(request)
        response.headers.setdefault("Cache-Control", "no-cache")
        return response

    async def index(self, _: web.Request) -> web.StreamResponse:
        return web.FileResponse(self.static / "index.html")

    async def no_style(self, _: web.Request) -> web.Response:
        return web.Response(content_type="text/css")

    async def object_info(self, _: web.Request) -> web.Response:
        return web.json_response(definitions(self.pack))

    async def websocket(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        session = request.query.get("clientId") or uuid.uuid4().hex
        self.sockets[session] = socket
        status = {"status": {"exec_info": {"queue_remaining": 0}}, "sid": session}
        await socket.send_json({"type": "status", "data": status})
        async for message in socket:
            if message.type == WSMsgType.TEXT and json.loads(message.data).get("type") == "feature_flags":
                await socket.send_json({"type": "feature_flags", "data": {}})
        if self.sockets.get(session) is socket:
            del self.sockets[session]
        return socket

    async def prompt(self, _: web.Request) -> web.Response:
        return web.json_response({"prompt_id": uuid.uuid4().hex, "number": 1, "node_errors": {}})

    # Settings and files of the user, one folder for every test run.
    @property
    def settings_file(self) -> Path:
        return self.data / "settings.json"

    def read_settings(self) -> dict[str, Any]:
        return json.loads(self.settings_file.read_text()) if self.settings_file.is_file() else {}

    async def settings(self, _: web.Request) -> web.Response:
        return web.json_response(self.read_settings())

    async def setting(self, request: web.Request) -> web.Response:
        return web.json_response(self.read_settings().get(request.match_info["key"]))

    async def store_settings(self, request: web.Request) -> web.Response:
        self.settings_file.write_text(json.dumps({**self.read_settings(), **await request.json()}))
        return web.Response()

    async def store_setting(self, request: web.Request) -> web.Response:
        changed = {request.match_info["key"]: await request.json()}
        self.settings_file.write_text(json.dumps({**self.read_settings(), **changed}))
        return web.Response()

    def userdata(self, request: web.Request) -> Path:
        return self.data / "userdata" / request.match_info["file"].replace("/", "%2F")

    async def read_userdata(self, request: web.Request) -> web.StreamResponse:
        file = self.userdata(request)
        return web.FileResponse(file) if file.is_file() else web.Response(status=404)

    async def write_userdata(self, request: web.Request) -> web.Response:
        self.userdata(request).write_bytes(await request.read())
        return web.json_response({"path": request.match_info["file"], "size": 0, "modified": 0, "created": 0})

    # Images.
    async def view(self, request: web.Request) -> web.StreamResponse:
        kind = request.query.get("type", "output")
        name = Path(request.query["filename"]).name
        if kind not in ("input", "output", "temp"):
            return web.Response(status=400)
        file = self.data / kind / name
        return web.FileResponse(file) if file.is_file() else web.Response(status=404)

    async def upload(self, request: web.Request) -> web.Response:
        image = (await request.post())["image"]
        assert isinstance(image, web.FileField)
        name = Path(image.filename).name
        (self.data / "input" / name).write_bytes(image.file.read())
        return web.json_response({"name": name, "subfolder": "", "type": "input"})

    # Orders of tests.
    async def order_send(self, request: web.Request) -> web.Response:
        message = await request.json()
        for socket in list(self.sockets.values()):
            await socket.send_json(message)
        return web.json_response(len(self.sockets))

    async def order_rule(self, request: web.Request) -> web.Response:
        rule = await request.json()
        self.rules = [*self.rules, rule] if rule else []
        return web.Response()

    async def order_requests(self, _: web.Request) -> web.Response:
        return web.json_response(self.requests)


async def serve(backend: Backend) -> None:
    runner = web.AppRunner(backend.application(), access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    assert site._server is not None
    port = site._server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]
    sys.stdout.write(json.dumps({"url": f"http://127.0.0.1:{port}"}) + "\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--frontend", type=Path, required=True, help="the static files of a front end")
    parser.add_argument("--data", type=Path, required=True, help="a folder for models, images and settings")
    arguments = parser.parse_args()
    asyncio.run(serve(Backend(arguments.frontend.resolve(), arguments.data.resolve())))


if __name__ == "__main__":
    main()
