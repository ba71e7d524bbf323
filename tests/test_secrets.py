"""A token or a signature that goes in by any door comes out by none."""

import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from src.errors import UserError
from src.serving.predictor import TextPredictor
from src.training.run import run_training
from src.weights.base_model.base_model import find_base_model
from src.weights.cache.local_path import find_local
from src.weights.download.download import fetch
from src.weights.download.url import printable_url
from tests.conftest import ROWS
from tests.serving.request import REQUEST
from tests.weights.adapters import good_tensors, write
from tests.weights.archives import HOSTILE
from tests.weights.http_server import cut_off, drip, files_of, hub_routes, serving

SECRET = "hunter2SECRETmarker"
TRAIN_INPUTS = {
    "validation_data": None, "num_train_epochs": 1, "max_steps": 2, "train_batch_size": 2,
    "micro_batch_size": 2, "validation_prompt": "What?",
}  # fmt: skip


def texts_below(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in folder.rglob("*"):
        yield str(path), path.read_bytes() if path.is_file() else b""


def signed(content: bytes):
    """Serve the content to those who bring the signature, and to no one else."""
    return lambda handler: handler.reply(200 if SECRET in handler.path else 403, content)


@pytest.fixture(autouse=True)
def _secrets_all_around(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "AWS_SECRET_ACCESS_KEY", "WANDB_API_KEY"):
        monkeypatch.setenv(name, SECRET)


def test_training_keeps_secrets(tmp_path: Path, base_dir: Path, write_rows, capfd, monkeypatch):
    from cog import Path as CogPath

    monkeypatch.setenv("BASE_MODEL", "llama-2-7b")
    monkeypatch.setenv("BASE_MODEL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    routes = {f"/m{name}": signed(data) for name, data in files_of(base_dir).items()}
    with serving(routes) as address:
        monkeypatch.setenv("BASE_MODEL_URL", f"{address}/m?X-Amz-Signature={SECRET}")
        inputs = {**TRAIN_INPUTS, "train_data": CogPath(write_rows(ROWS))}
        archive = run_training(inputs, record_metric=lambda *_, **__: None)
    shown = capfd.readouterr()
    assert "step 2/2" in shown.out  # the log was there to be looked at
    assert SECRET not in shown.out + shown.err
    with tarfile.open(archive) as tar:
        names = tar.getnames()
        contents = [tar.extractfile(name).read() for name in names]  # type: ignore[union-attr]
    assert "training.json" in names
    assert "report.html" in names
    assert not any(SECRET.encode() in content for content in contents)
    for name, content in texts_below(tmp_path):
        assert SECRET not in name
        assert SECRET.encode() not in content


def adapter_archive(folder: Path) -> bytes:
    buffer = io.BytesIO()
    folder.mkdir()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for file in sorted(write(folder, good_tensors()).iterdir()):
            tar.add(file, file.name)
    return buffer.getvalue()


def test_predictions_keep_secrets(tmp_path: Path, base_dir: Path, capfd, monkeypatch):
    monkeypatch.setenv("BASE_MODEL", str(base_dir))
    monkeypatch.setenv("WEIGHTS_CACHE", str(tmp_path / "cache"))
    predictor = TextPredictor(None)
    metrics: list[object] = []
    routes = {
        "/misfit": signed(adapter_archive(tmp_path / "adapter")),
        "/html": signed(b"<html>"),
        "/bad": signed(HOSTILE["traversal"]),
        "/cut": cut_off,
        "/to-password": lambda h: h.reply(302, b"", Location=f"http://me:{SECRET}@127.0.0.1/"),
        "/to-signature": lambda h: h.reply(302, b"", Location=f"/none?sig={SECRET}"),
        "/to-odd": lambda h: h.reply(302, b"", Location=f"ftp://host/?{SECRET}#{SECRET}"),
    }
    with serving(routes) as address:
        host = address.removeprefix("http://")
        for source in (
            *(f"{address}{route}?X-Amz-Signature={SECRET}" for route in (*routes, "/none")),
            f"{address}/misfit#{SECRET}",
            f"http://me:{SECRET}@{host}/misfit",
            f"http://{SECRET}@{host}/misfit",
            f"ftp://me:{SECRET}@{host}/misfit",
            f"http://127.0.0.1:1/w?token={SECRET}",
            f"http://nowhere.invalid/w?token={SECRET}",
            f"http://[::1/w?token={SECRET}",
            f"https://{host}/w?token={SECRET}",
            f"data:,x?{SECRET}",
            f"data:{SECRET}",
        ):
            request = {**REQUEST, "debug": True, "replicate_weights": source}
            with pytest.raises(UserError) as caught:
                list(predictor.stream(request, record_metric=lambda *v, **_: metrics.append(v)))
            assert SECRET not in str(caught.value), source
    shown = capfd.readouterr()
    assert "ready after" in shown.out
    assert SECRET not in shown.out + shown.err + repr(metrics)
    for name, content in texts_below(tmp_path / "cache"):
        assert SECRET not in name
        assert SECRET.encode() not in content


def test_base_models_keep_secrets(tmp_path: Path, base_dir: Path, capfd):
    environ = {"BASE_MODEL": "someone/tiny", "HF_TOKEN": SECRET}
    refusals = {"RepoNotFound": 401, "GatedRepo": 403, "": 500}
    for number, (code, status) in enumerate(refusals.items()):
        cache = {"BASE_MODEL_CACHE": str(tmp_path / str(number))}

        def refuse(handler, code=code, status=status):
            handler.reply(status, SECRET.encode(), X_Error_Code=code, X_Error_Message=SECRET)

        routes = dict.fromkeys(hub_routes(base_dir, "someone/tiny"), refuse)
        with serving(routes) as address, pytest.raises(UserError) as caught:
            find_base_model({**environ, **cache, "HF_ENDPOINT": address})
        assert f"Bearer {SECRET}" not in str(caught.value)
    for number, url in enumerate((
        f"http://127.0.0.1:1/m?sig={SECRET}",
        f"http://me:{SECRET}@127.0.0.1:1/m",
        f"ftp://127.0.0.1/m?sig={SECRET}",
        f"http://[::1/m?sig={SECRET}",
    )):  # fmt: skip
        cache = {"BASE_MODEL_CACHE": str(tmp_path / f"mirror-{number}")}
        with pytest.raises(UserError) as caught:
            find_base_model({**environ, **cache, "BASE_MODEL_URL": url})
        assert SECRET not in str(caught.value), url
    shown = capfd.readouterr()
    assert SECRET not in shown.out + shown.err
    for name, content in texts_below(tmp_path):
        assert SECRET not in name, name
        assert SECRET.encode() not in content


def test_slow_and_broken_downloads_keep_secrets(tmp_path: Path):
    with serving({"/drip": drip, "/cut": cut_off}) as address:
        for route in ("drip", "cut"):
            with pytest.raises(UserError) as caught:
                fetch(
                    f"{address}/{route}?sig={SECRET}", tmp_path / "file", max_bytes=2000,
                    timeout_seconds=0.5,
                )  # fmt: skip
            assert SECRET not in str(caught.value)
            error: BaseException | None = caught.value
            while error is not None:  # what a log of the whole traceback would show
                assert error.__suppress_context__ or error.__context__ is None
                error = error.__cause__


@pytest.mark.parametrize(
    "url",
    [
        f"https://host/p?sig={SECRET}", f"https://host/p#{SECRET}", f"https://{SECRET}@host/p",
        f"https://me:{SECRET}@host/p", f"https://me:a@b{SECRET}@host/p", f"//{SECRET}@host/p",
        f"https://me:pa/{SECRET}@host/p", f"https://me:pa?{SECRET}@host/p",
        f"https://me:{SECRET}#x@host/p", f"https://me:{SECRET}?x@host/p?to=a@b",
        f"https:///me:{SECRET}@host/p", f"https:/me:{SECRET}@host/p", f"me:{SECRET}@host/p",
        f"https://me:{SECRET}\uff20host/p", f"https://me:{SECRET}\ufe6bhost/p",
        f"https://host\uff1fsig={SECRET}", f"https://host\uff03{SECRET}",
        f"https://host/p?to=a@b&sig={SECRET}", f"https://host/p&sig={SECRET}",
        f"https://host/p;sig={SECRET}", f"https://host/p%3Fsig={SECRET}",
        f"https:/host/p?sig={SECRET}", f"host/p?X-Amz-Signature={SECRET}",
        f"https://\n//me:{SECRET}@host", f"s3://me:{SECRET}@host/p", f"a/https://{SECRET}@host",
        f"https://host?{SECRET}", f"data:,{SECRET}", f"DATA:;base64,{SECRET}", f"?{SECRET}",
    ],
)  # fmt: skip
def test_only_scheme_host_and_path_are_shown(tmp_path: Path, url: str):
    assert SECRET not in printable_url(url)
    for root in (None, tmp_path):
        with pytest.raises(UserError) as caught:
            find_local(url, root)
        assert SECRET not in str(caught.value)


def test_what_is_no_secret_is_shown():
    assert printable_url("https://host:80/a/w.tar?sig=x") == "https://host:80/a/w.tar"
    assert printable_url("https://me:hunter2@host/p?x") == "https://...@host/p"
    assert printable_url("folder/w.tar") == "folder/w.tar"


def test_the_secrets_were_there():
    """The control: the marker is in the environment, and would be found in a text."""
    assert os.environ["HF_TOKEN"] == SECRET
    assert SECRET in f"could not download https://host/p?sig={SECRET}"
