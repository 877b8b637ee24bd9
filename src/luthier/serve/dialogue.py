"""A dialogue with what is served, in this process: an answer's text as it is written."""

from collections.abc import Iterator, Sequence
from queue import SimpleQueue

from luthier.core.chat import Conversation, Message
from luthier.core.errors import UsageError
from luthier.core.generation import Asked, Sampling, Token
from luthier.serve.served import Served
from luthier.serve.text import Decoding, Writer


class Dialogue:
    """What was said so far, and who answers. The tuned model's answers are what is remembered."""

    def __init__(self, served: Served, model: str, base: str, sampling: Sampling) -> None:
        """`base` is the name of the untuned model; of `sampling` the number of tokens is what an answer may have at most."""
        self._served, self._model, self._base, self._sampling = served, model, base, sampling
        self._turns: tuple[Message, ...] = ()
        self.system = ""

    def reset(self) -> None:
        """Forget all that was said; the system prompt stays."""
        self._turns = ()

    def say(self, text: str) -> Iterator[str]:
        """The tuned model's answer, in pieces; it is remembered once it is whole."""
        turns, said = (*self._turns, Message(role="user", content=text)), []
        for piece in self._answer(self._model, turns):
            said.append(piece)
            yield piece
        self._turns = (*turns, Message(role="assistant", content="".join(said)))

    def base_says(self) -> Iterator[str]:
        """What the base answers to what was said last, after the same turns; raises UsageError before there is one."""
        if not self._turns:
            raise UsageError("nothing was said yet", change="say something, then /base")
        yield from self._answer(self._base, self._turns[:-1])

    def _answer(self, model: str, turns: Sequence[Message]) -> Iterator[str]:
        system = (Message(role="system", content=self.system),) if self.system else ()
        ids = self._served.tokenizer.prompt_ids(Conversation(messages=(*system, *turns)))
        room = self._served.engine.max_length - len(ids)
        if room < 1:
            raise UsageError(f"the dialogue has {len(ids):,} tokens; the model takes {self._served.engine.max_length:,}", change="/reset")
        heard = _Heard()
        asked = Asked(
            ids=tuple(ids),
            sampling=Sampling(
                max_new_tokens=min(room, self._sampling.max_new_tokens),
                temperature=self._sampling.temperature,
                top_p=self._sampling.top_p,
                seed=self._sampling.seed + len(turns),
            ),
            stop_ids=frozenset(self._served.tokenizer.stop_ids),
            adapter=self._served.models[model],
        )
        ticket = self._served.engine.submit(asked, heard)
        writer = Writer(decoding=Decoding(self._served.tokenizer))
        try:
            while True:
                piece = writer.add(heard.next())
                yield piece.text
                if piece.end:
                    return
        finally:
            ticket.cancel()


class _Heard:
    """What the engine tells, for a thread that waits for it."""

    def __init__(self) -> None:
        self._told: SimpleQueue[Token | Exception] = SimpleQueue()

    def prompt(self, tokens: tuple[Token, ...]) -> None:
        """Not asked for."""

    def token(self, token: Token) -> None:
        self._told.put(token)

    def failed(self, error: Exception) -> None:
        self._told.put(error)

    def next(self) -> Token:
        told = self._told.get()
        if isinstance(told, Exception):
            raise told
        return told
