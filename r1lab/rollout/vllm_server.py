"""vLLM behind HTTP: TRL's client asks it for completions and sends it the weights.

    VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --weight-transfer-config '{"backend": "nccl"}' \\
        --logprobs-mode processed_logprobs

The weights go over NCCL, so the process that sends them needs a CUDA device, another than the server's.
"""

import shlex
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from urllib.parse import urlparse

import requests
import torch
from torch import nn

from r1lab.config import GRPOConfig
from r1lab.rollout.vllm_requests import VLLMRequest, VLLMSample, checkpoint_tensors, read_samples

CONCURRENCY = 64
"""Requests under way at a time: the connections that TRL's client keeps."""
HEALTH_TIMEOUT_S = 5.0
RETRY_INTERVAL_S = 1.0
CLIENT_ARGUMENTS = ("n", "temperature", "top_p", "top_k", "max_tokens")
"""Sampling parameters that `VLLMClient.generate` has arguments for; the others it passes on as they are."""

ANSWER = ("completion_ids", "logprobs", "logprob_token_ids")


class VLLMServer:
    """A connection to a running server; held by one process."""

    is_shared = True
    """One engine answers for all processes."""
    forgets_weights = False

    def __init__(self, config: GRPOConfig, model_name: str, device: torch.device):
        """Waits up to `vllm_server_timeout` seconds for the server, then opens the group that weights are sent through.

        Raises ConnectionError when no server answers in time or it fails, ValueError when it or this process is not set
        up to send weights; each names the fix.
        """
        from trl.generation.vllm_client import VLLMClient

        self.url = server_url(config)
        self.device = device
        start = serve_command(model_name, self.url)
        if device.type != "cuda":
            raise ValueError(
                f"vllm_mode=server sends weights over NCCL, and this process trains on {device.type}: train on a CUDA "
                "device, or leave use_vllm out"
            )
        wait_for_server(self.url, config.vllm_server_timeout, start)
        try:
            with self._one_line_errors(f"start it with: {start}"):
                self.client = VLLMClient(self.url, group_port=config.vllm_group_port)
                info = self.client.get_server_info()
                self.client.session.hooks["response"].append(_raise_for_status)
                self.client.init_communicator(device)
        except RuntimeError as error:  # TRL's, on a server without a setting that it needs
            raise ValueError(f"{_first_line(error)} The whole command: {start}") from error
        self.context: int | None = info["model_config"].get("max_model_len")
        mode = info["model_config"].get("logprobs_mode")
        if config.vllm_importance_sampling_correction and mode != "processed_logprobs":
            warnings.warn(
                f"the vLLM server at {self.url} runs with --logprobs-mode {mode}, which biases the importance sampling "
                "correction; start it with --logprobs-mode processed_logprobs",
                stacklevel=2,
            )

    def sample(self, asked: list[VLLMRequest]) -> list[list[VLLMSample]]:
        """The samples of each request, in order. Raises ConnectionError when the server fails."""
        if not asked:
            return []
        with ThreadPoolExecutor(min(CONCURRENCY, len(asked))) as pool:
            return list(pool.map(self._ask, asked))

    def push(self, policy: nn.Module) -> None:
        """The policy's weights to the server, which forgets the prompts it had read with the old ones.

        Raises ConnectionError when the server fails.
        """
        tensors = checkpoint_tensors(policy)
        metadata = [(name, str(value.dtype).removeprefix("torch."), list(value.shape)) for name, value in tensors]
        with self._one_line_errors("see its log, start it again and continue with --resume_from_checkpoint true"):
            self.client.update_named_params(metadata, ((name, value.contiguous()) for name, value in tensors))
            self.client.reset_prefix_cache()

    def _ask(self, request: VLLMRequest) -> list[VLLMSample]:
        arguments = {name: request.sampling[name] for name in CLIENT_ARGUMENTS}
        others = {name: value for name, value in request.sampling.items() if name not in arguments}
        with self._one_line_errors("see its log, start it again and continue with --resume_from_checkpoint true"):
            answer = self.client.generate([request.prompt_ids], logprobs=0, generation_kwargs=others, **arguments)
            samples = read_samples(request, *(answer[name] for name in ANSWER))
            if answer["prompt_ids"] != [request.prompt_ids]:
                raise ValueError("completions of another prompt")
        return samples

    @contextmanager
    def _one_line_errors(self, fix: str) -> Iterator[None]:
        try:
            yield
        except requests.RequestException as error:
            raise ConnectionError(f"the vLLM server at {self.url} failed: {_first_line(error)}; {fix}") from error
        except (LookupError, TypeError, ValueError) as error:
            raise ConnectionError(
                f"the vLLM server at {self.url} answered what was not asked for: {_first_line(error)}; use a vLLM that "
                "TRL supports (pip install 'trl[vllm]')"
            ) from error


def server_url(config: GRPOConfig) -> str:
    """`vllm_server_base_url`, else host and port, without a slash at its end."""
    url = config.vllm_server_base_url or f"http://{config.vllm_server_host}:{config.vllm_server_port}"
    return url.rstrip("/")


def serve_command(model_name: str, url: str) -> str:
    """The command line that starts a server as TRL's client needs it."""
    port = ["--port", str(urlparse(url).port or 8000)]
    transfer = ["--weight-transfer-config", '{"backend": "nccl"}', "--logprobs-mode", "processed_logprobs"]
    return f"VLLM_SERVER_DEV_MODE=1 {shlex.join(['vllm', 'serve', model_name, *port, *transfer])}"


def wait_for_server(url: str, timeout: float, start_command: str) -> None:
    """Until the server is healthy. TRL's client waits too, but for ever where a server answers and is not healthy.

    Raises ConnectionError when it is not healthy after `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    while True:
        try:
            status = requests.get(f"{url}/health", timeout=HEALTH_TIMEOUT_S).status_code
        except requests.RequestException as error:
            reason = type(error).__name__
        else:
            if status == 200:
                return
            reason = f"its health is HTTP {status}"
        left = deadline - time.monotonic()
        if left <= 0:
            raise ConnectionError(
                f"no vLLM server at {url} after vllm_server_timeout={timeout:g} seconds ({reason}); start it with: "
                f"{start_command}"
            )
        time.sleep(min(RETRY_INTERVAL_S, left))


def _raise_for_status(response: requests.Response, *args, **kwargs) -> None:
    if response.status_code >= 400:
        text = " ".join(response.text.split())[:300]
        raise requests.HTTPError(f"HTTP {response.status_code} on {urlparse(response.url).path}: {text}")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
