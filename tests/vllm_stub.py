"""A server that speaks `vllm serve`'s HTTP as TRL's client does, and stand-ins for what TRL takes from vLLM itself.

What it shows: the requests sent and the answers read, by TRL's unmodified client. What it cannot: NCCL (weights go
through a socket instead), vLLM's loading of them, its kernels, and vLLM 0.28's way of sending.
"""

import json
import threading
import time
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Client, Connection, Listener
from types import SimpleNamespace
from unittest import mock
from urllib.parse import urlparse

import torch
from accelerate import Accelerator

from r1lab.config import GRPOConfig
from r1lab.model import PolicyForCausalLM
from r1lab.rollout import RolloutEngine, SamplingParams

MODEL = "tiny"


class StubServer(ThreadingHTTPServer):
    """Generates with a policy of its own, which the pushed weights replace. Use it as a context manager."""

    daemon_threads = True

    def __init__(self, policy: PolicyForCausalLM):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.policy = policy
        self.log: list[tuple[str, dict]] = []
        """(path, body) of every request."""
        self.statuses: dict[str, int] = {}
        """Path -> the status that it answers with, in place of an answer."""
        self.change = lambda choices, body: choices
        """Applied to the choices of a completion before they are sent."""
        self.vllm_config = {
            "weight_transfer_config": {"backend": "nccl"},
            "model_config": {"logprobs_mode": "processed_logprobs", "max_model_len": 64},
        }
        self.lock = threading.Lock()
        self.group: Connection | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def bodies(self, path: str) -> list[dict]:
        return [body for one, body in self.log if one == path]

    def __enter__(self):
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *error):
        self.shutdown()
        self.server_close()

    def answer(self, path: str, body: dict) -> tuple[int, dict | None]:
        routes = {
            "/health": lambda: {},
            "/v1/models": lambda: {"data": [{"id": MODEL}]},
            "/server_info": lambda: {"vllm_config": self.vllm_config},
            "/get_world_size": lambda: {"world_size": 1},
            "/init_weight_transfer_engine": lambda: self._join(body["init_info"]),
            "/start_weight_update": lambda: {},
            "/update_weights": lambda: self._receive(body["update_info"]),
            "/finish_weight_update": lambda: {},
            "/reset_prefix_cache": lambda: {"success": True},
            "/v1/completions": lambda: self._complete(body),
        }
        with self.lock:
            self.log.append((path, body))
            if path in self.statuses:
                return self.statuses[path], {"error": "the stub\nwas told to"}
            if path not in routes:
                return 404, None
            try:
                return 200, routes[path]()
            except (ValueError, KeyError, AssertionError) as error:
                return 400, {"error": repr(error)}

    def _join(self, info: dict) -> dict:
        assert info["rank_offset"] == 1 and info["world_size"] == 2, info
        for _ in range(200):
            try:
                self.group = Client((info["master_address"], info["master_port"]))
                return {}
            except ConnectionRefusedError:  # the trainer opens the group meanwhile
                time.sleep(0.02)
        raise ValueError("no trainer in the group")

    def _receive(self, info: dict) -> dict:
        state = {}
        for name, dtype, shape in zip(info["names"], info["dtype_names"], info["shapes"], strict=True):
            sent_name, array = self.group.recv()
            state[name] = torch.from_numpy(array)
            announced = (name, dtype, shape)
            assert announced == (sent_name, str(array.dtype), list(array.shape)), (announced, sent_name)
        # As vLLM does, from a checkpoint's names.
        self.policy, report = PolicyForCausalLM.from_pretrained(
            None, config=self.policy.config, state_dict=state, output_loading_info=True
        )
        assert not report["missing_keys"] and not report["unexpected_keys"], report
        return {}

    def _complete(self, body: dict) -> dict:
        assert body["model"] == MODEL and body["return_token_ids"] and body["return_tokens_as_token_ids"], body
        (prompt,) = body["prompt"]
        if len(prompt) + body["max_tokens"] > self.vllm_config["model_config"]["max_model_len"]:
            raise ValueError("longer than the context")
        if body["temperature"] == 0 and body["n"] > 1:
            raise ValueError("n must be 1 when using greedy sampling")
        banned = tuple(int(token) for token, bias in body.get("logit_bias", {}).items() if bias <= -100)
        params = SamplingParams(
            body["n"], body["max_tokens"], body["temperature"], body["top_p"], body["top_k"], banned_token_ids=banned
        )
        engine = RolloutEngine(self.policy.eval(), eos_token_id=body["stop_token_ids"] if body["ignore_eos"] else 0)
        seeds = [[body["seed"] + i for i in range(body["n"])]]
        (completions,) = engine.generate([prompt], params, seeds=seeds)
        choices = [_choice(i, prompt, completion) for i, completion in enumerate(completions)]
        return {"object": "text_completion", "choices": self.change(choices, body)}


def _choice(index: int, prompt: list[int], completion) -> dict:
    names = [f"token_id:{token}" for token in completion.token_ids]
    return {
        "index": index,
        "text": "",
        "finish_reason": completion.finish_reason,
        "prompt_token_ids": prompt,
        "token_ids": completion.token_ids,
        "logprobs": {
            "tokens": names,
            "token_logprobs": completion.logps,
            "top_logprobs": [{name: logp} for name, logp in zip(names, completion.logps, strict=True)],
        },
    }


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self._reply({})

    def do_POST(self):
        length = int(self.headers.get("Content-Length") or 0)
        self._reply(json.loads(self.rfile.read(length) or "{}"))

    def _reply(self, body: dict) -> None:
        status, answer = self.server.answer(urlparse(self.path).path, body)
        data = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        # A thread that waits for the next request of its connection would be killed with the interpreter, inside torch.
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments):
        pass


class SocketTransfer:
    """Stands in for vLLM's `NCCLWeightTransferEngine`, the trainer's side: the same calls, through a socket."""

    @staticmethod
    def trainer_init(init_info: dict):
        with Listener((init_info["master_address"], init_info["master_port"])) as listener:
            return SimpleNamespace(connection=listener.accept(), group=SimpleNamespace())

    @staticmethod
    def trainer_send_weights(iterator, trainer_args) -> None:
        assert trainer_args.packed
        for name, tensor in iterator:
            trainer_args.group.connection.send((name, tensor.detach().numpy()))


class CudaInName:
    """An accelerator that says its device is a GPU: TRL's client opens no group from a CPU. Nothing is put there."""

    def __init__(self, accelerator: Accelerator | None = None):
        self._accelerator = accelerator or Accelerator(cpu=True)
        self.device = torch.device("cuda")

    def __getattr__(self, name):
        return getattr(self._accelerator, name)


@contextmanager
def stand_ins():
    """TRL believes that vLLM is installed, and finds what it takes from it."""
    from trl import import_utils
    from trl.generation import vllm_client, vllm_generation

    patches = [
        (one, "is_vllm_available", lambda *_, **__: True) for one in (import_utils, vllm_client, vllm_generation)
    ]
    patches += [
        (vllm_client, "get_ip", lambda: "127.0.0.1"),
        (vllm_client, "NCCLWeightTransferEngine", SocketTransfer),
        (vllm_client, "NCCLTrainerSendWeightsArgs", SimpleNamespace),
    ]
    with ExitStack() as stack:
        for module, name, value in patches:
            stack.enter_context(mock.patch.object(module, name, value, create=True))
        yield


def server_config(url: str, group_port: int, **changes) -> GRPOConfig:
    fields = {
        "use_vllm": True,
        "vllm_mode": "server",
        "vllm_server_base_url": url,
        "vllm_server_timeout": 0.0,
        "vllm_group_port": group_port,
    }
    return GRPOConfig(**{**fields, **changes})
