"""What callers get of a server with OpenAI's API, this one or any other, over real connections.

    python -m benchmarks.serve_load --url http://127.0.0.1:8000 --model llama --vocab_size 128256 \
        [--cases 1,128,256 64,512,256] [--rate 8 --requests 200] [--passes 2]

A case is so many requests at once, each with so many tokens in and out; prompts are random token ids, ends
are ignored, choice is greedy. With `--rate` they arrive by chance instead, so many a second: `--requests` of
the first case's lengths. `out tok/s` is of all requests, from the first's start to the last's end; `first` is
the time to a request's first token, `a token` the time from its first to its last, by token, `gap` the time
between events. Of `--passes`, the one with the most tokens a second counts.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from benchmarks.runtime_cases import SHAPES, Case
from benchmarks.runtime_options import case_of
from benchmarks.runtime_peers import SHAPE


@dataclass(kw_only=True)
class Answer:
    """When what came of a request."""

    asked_s: float
    events_s: list[float] = field(default_factory=list)
    tokens: int = 0

    @property
    def first_s(self) -> float:
        return self.events_s[0] - self.asked_s

    @property
    def token_s(self) -> float:
        return (self.events_s[-1] - self.events_s[0]) / max(1, self.tokens - 1)

    @property
    def gaps_s(self) -> list[float]:
        return [after - before for before, after in zip(self.events_s, self.events_s[1:], strict=False)]


@dataclass(frozen=True, kw_only=True)
class Server:
    """Where, and as whom."""

    host: str
    port: int
    model: str
    key: str

    async def ask(self, prompt: Sequence[int], tokens: int) -> Answer:
        """A completion, streamed to its end."""
        answer = Answer(asked_s=time.perf_counter())
        reader, writer = await asyncio.open_connection(self.host, self.port)
        writer.write(self._request(prompt, tokens))
        status = await reader.readline()
        if b" 200 " not in status:
            raise SystemExit(
                f"{self.host}:{self.port}: {(await reader.read()).decode(errors='replace').splitlines()[-1]}"
            )
        async for line in reader:
            if line.startswith(b"data: {"):
                self._note(answer, json.loads(line[6:]))
        writer.close()
        if answer.tokens != tokens:
            raise SystemExit(f"{answer.tokens} tokens came of {tokens} that were asked for")
        return answer

    def _request(self, prompt: Sequence[int], tokens: int) -> bytes:
        asked = {"model": self.model, "prompt": list(prompt), "max_tokens": tokens, "min_tokens": tokens}
        asked |= {"ignore_eos": True, "temperature": 0, "stream": True}
        asked |= {"stream_options": {"include_usage": True}}
        body = json.dumps(asked).encode()
        # A stream of HTTP/1.0 comes as it is, without lengths of chunks in it.
        head = f"POST /v1/completions HTTP/1.0\r\nHost: {self.host}:{self.port}\r\n"
        head += f"Authorization: Bearer {self.key}\r\nContent-Type: application/json\r\n"
        return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body

    @staticmethod
    def _note(answer: Answer, chunk: dict[str, object]) -> None:
        if chunk.get("error"):
            raise SystemExit(f"the server broke a stream off: {chunk['error']}")
        if chunk.get("choices"):
            answer.events_s.append(time.perf_counter())
        if usage := chunk.get("usage"):
            assert isinstance(usage, dict)
            answer.tokens = usage["completion_tokens"]


@dataclass(frozen=True, kw_only=True)
class Load:
    """All answers of one pass."""

    answers: list[Answer]

    @property
    def rate(self) -> float:
        """Tokens a second."""
        begin = min(answer.asked_s for answer in self.answers)
        return sum(answer.tokens for answer in self.answers) / (self._end - begin)

    @property
    def _end(self) -> float:
        return max(answer.events_s[-1] for answer in self.answers)

    def row(self, name: str) -> str:
        first = [answer.first_s for answer in self.answers]
        token = [answer.token_s for answer in self.answers]
        gaps = [gap for answer in self.answers for gap in answer.gaps_s] or [0.0]
        shown = [statistics.median(first), late(first), statistics.median(token), late(token), late(gaps)]
        return f"{name:<16}{self.rate:>11.0f}" + "".join(f"{each * 1e3:>12.2f}" for each in shown)


def late(times: Sequence[float]) -> float:
    """What 99 of 100 are not above."""
    return sorted(times)[min(len(times) - 1, int(len(times) * 0.99))]


async def together(server: Server, case: Case, vocabulary: int, turn: int) -> Load:
    asked = (server.ask(prompt, case.tokens_out) for prompt in case.prompts(vocabulary, turn))
    return Load(answers=await asyncio.gather(*asked))


async def by_chance(server: Server, case: Case, vocabulary: int, turn: int, rate: float) -> Load:
    """Arrivals of a Poisson process."""
    chance = random.Random(turn)

    async def asked(prompt: Sequence[int], after_s: float) -> Answer:
        await asyncio.sleep(after_s)
        return await server.ask(prompt, case.tokens_out)

    at_s = 0.0
    coming = []
    for prompt in case.prompts(vocabulary, turn):
        coming.append(asked(prompt, at_s))
        at_s += chance.expovariate(rate)
    return Load(answers=await asyncio.gather(*coming))


def main() -> None:
    """A row for every case."""
    options = _options()
    address = urlsplit(options.url)
    server = Server(
        host=address.hostname or "127.0.0.1", port=address.port or 80, model=options.model, key=options.key
    )
    cases: Sequence[Case] = options.cases
    asyncio.run(together(server, cases[0], options.vocab_size, -1))  # warm
    heads = ["out tok/s", "first ms", "99%", "a token ms", "99%", "gap 99%"]
    print(f"{'case':<16}{heads[0]:>11}" + "".join(f"{head:>12}" for head in heads[1:]), flush=True)
    if options.rate:
        case = Case(batch=options.requests, tokens_in=cases[0].tokens_in, tokens_out=cases[0].tokens_out)
        load = asyncio.run(by_chance(server, case, options.vocab_size, 0, options.rate))
        print(load.row(f"{options.rate:g}/s {case.tokens_in}, {case.tokens_out}"))
        return
    for case in cases:
        passes = [
            asyncio.run(together(server, case, options.vocab_size, turn)) for turn in range(options.passes)
        ]
        print(max(passes, key=lambda one: one.rate).row(str(case)), flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", required=True, help="of the server, without /v1")
    parser.add_argument("--model", required=True, help="its name there")
    parser.add_argument("--key", default="none", help="as `Authorization: Bearer`")
    parser.add_argument("--vocab_size", type=int, required=True, help="tokens of prompts are below it")
    parser.add_argument(
        "--cases", type=case_of, nargs="+", default=SHAPES[SHAPE].cases, help="requests,in,out of each"
    )
    parser.add_argument("--rate", type=float, help="requests a second, which arrive by chance")
    parser.add_argument("--requests", type=int, default=200, help="with --rate, how many")
    parser.add_argument("--passes", type=int, default=2, help="of every case")
    return parser.parse_args()


if __name__ == "__main__":
    main()
