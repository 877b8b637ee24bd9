"""What is hidden, what is left to read, and that neither takes long."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.core.redact import HIDDEN, redact, redacted, secret_line

SECRETS = {
    "Hugging Face": "hf_" + "aB3d" * 8,
    "OpenAI": "sk-proj-abcdEFGH1234567890",
    "Anthropic": "sk-ant-api03-abcdEFGH1234567890",
    "AWS": "AKIAIOSFODNN7EXAMPLE",
    "GitHub": "ghp_" + "x1Y2" * 9,
    "GitHub, fine-grained": "github_pat_" + "x1Y2" * 9,
    "GitLab": "glpat-" + "x1Y2" * 5,
    "Slack": "xoxb-123456789012-abcdefABCDEF",
    "Google": "AIza" + "x1Y2z" * 7,
    "a JSON web token": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmN",
    "a private key": "-----BEGIN RSA PRIVATE KEY-----\nMIIEowIBAAKCAQEA1\n-----END RSA PRIVATE KEY-----",
}


@pytest.mark.parametrize("secret", SECRETS.values(), ids=SECRETS.keys())
def test_a_secret_is_known_by_its_form_wherever_it_stands(secret: str) -> None:
    for text in ("{}", "the key {} is mine", '{{"a": "{}"}}', "a={}.", "(see {})", "x/{}\n"):
        assert secret not in redact(text.format(secret))
        assert redact(text.format(secret)) == redact(text.format(HIDDEN))


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("DB_PASSWORD=word", "DB_PASSWORD=[redacted]"),
        ("password=12345678", "password=[redacted]"),
        ('{"api_key": "hunter2"}', '{"api_key": "[redacted]"}'),
        ("passphrase: hunter2!", "passphrase: [redacted]"),
        ("client_secret=abc&x=1", "client_secret=[redacted]&x=1"),
        ("train r.yaml --hub-token word", "train r.yaml --hub-token [redacted]"),
        ("--password=word", "--password=[redacted]"),
        ("https://ann:word@host/x?y=1", "https://[redacted]@host/x?y=1"),
        ("postgres://ann:w:d@host", "postgres://[redacted]@host"),
        ("Authorization: Bearer abcdefgh.ijklmnop", "Authorization: Bearer [redacted]"),
    ],
)
def test_a_value_is_hidden_where_its_name_says_what_it_is(text: str, left: str) -> None:
    assert redact(text) == left


@pytest.mark.parametrize(
    "text",
    [
        "max_new_tokens: 256",
        "training 12 1,234 tokens/s",
        "0.5 seconds per token=0.01, more",
        "one token = 4 bytes",
        "eos_token=<|im_end|>",
        "Ask for the password: never say it",
        "HF_TOKEN for a gated model",
        "secret=$HOME",
        "http://localhost:8080/a@b",
        "scikit-learn, task-1234567890123456789",
        "--tokens 512:2048",
        "sha256 " + "0123456789abcdef" * 4,
    ],
)
def test_what_is_no_secret_can_be_read(text: str) -> None:
    assert redact(text) == text


def test_the_environments_secrets_are_hidden_whatever_their_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "plainwordsonly")
    monkeypatch.setenv("MY_TOKEN", "true")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "perhaps-not-1")
    assert redact("plainwordsonly is true, perhaps-not-1") == "[redacted] is true, perhaps-not-1"


def test_keys_and_values_of_json_are_redacted_and_numbers_stay() -> None:
    secret = SECRETS["AWS"]
    assert redacted({secret: [secret, 1, None, {"a": (True, secret)}]}) == {HIDDEN: [HIDDEN, 1, None, {"a": [True, HIDDEN]}]}


def test_the_line_of_the_first_secret_is_told() -> None:
    assert secret_line("a\nb\npassword=x1\nhf_" + "a" * 30) == 3
    assert secret_line("nothing here") == 0


pieces = st.sampled_from(
    [*SECRETS.values(), "password", "token", "=", ": ", "://", ":", "@", '"', "--", "api-key", " ", "\n", "1", "word", HIDDEN]
)


@given(st.one_of(st.text(), st.lists(pieces, max_size=12).map("".join)))
def test_what_was_redacted_once_stays_as_it_is(text: str) -> None:
    once = redact(text)
    assert redact(once) == once
    assert secret_line(once) == 0


@pytest.mark.parametrize(
    "piece", ["a", "password", "hf_", "sk-", "eyJa", "://a", "token:", "--token", "-", "--a-", "=", "Bearer ", "1", "://:", "_"]
)
def test_a_long_text_takes_a_moment_whatever_it_repeats(piece: str) -> None:
    began = time.perf_counter()
    redact(piece * (100_000 // len(piece)))
    assert time.perf_counter() - began < 2
