"""transformers' own tests pass on our classes. They come with its source distribution, which pip downloads."""

import os
import subprocess
import sys
import tarfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import transformers
from PIL import Image

ROOT = Path(__file__).parents[2]
SUITE = Path(__file__).with_name("transformers_suite.py")
# What its tests import of files that the source distribution leaves out.
ABSENT = {
    "generation/test_utils.py": "class GenerationTesterMixin: ...",
    "exporters/test_export.py": "class ExportTesterMixin: ...",
    "utils/test_configuration_utils.py": "config_common_kwargs = {}",
    "../utils/fetch_hub_objects_for_ci.py": "def url_to_local_path(url): return __file__ + '.png'",
}
OPTIONS = ["-q", "--tb=short", "-p", "no:warnings", "-p", "no:cacheprovider"]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory) -> Path:
    """A folder with `tests` of the installed transformers, `site` with what they import, and our suite among them."""
    folder = tmp_path_factory.mktemp("transformers")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    wanted = f"transformers=={transformers.__version__}"
    source = ["download", "--no-deps", "--no-binary", "transformers", "--no-build-isolation", wanted, "-d", "."]
    for command in (source, ["install", "--no-deps", "--target", "site", "parameterized"]):
        done = subprocess.run([*pip, *command], cwd=folder, capture_output=True, text=True)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            pytest.fail(f"cannot download the source of {wanted}, which has the tests: {reason}", pytrace=False)
    [archive] = folder.glob("transformers-*.tar.gz")
    with tarfile.open(archive) as files:
        inside = [member for member in files.getmembers() if "/tests/" in member.name and "/src/" not in member.name]
        files.extractall(folder, members=inside, filter="data")
    [tests] = folder.glob("transformers-*/tests")
    for name, text in ABSENT.items():
        path = tests / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        (path.parent / "__init__.py").touch()
    Image.new("RGB", (40, 50), "red").save(tests.parent / "utils" / "fetch_hub_objects_for_ci.py.png")
    (tests / "__init__.py").touch()
    (tests / "test_processing_mllm.py").write_text(SUITE.read_text())
    (tests.parent / "site").symlink_to(folder / "site")
    return tests.parent


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ModelTest", "ProcessorTest"])
def test_transformers_own_tests_pass(unpacked, kind):
    paths = [unpacked, unpacked / "site", ROOT]
    report = unpacked / f"{kind}.xml"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *OPTIONS, f"tests/test_processing_mllm.py::{kind}", f"--junitxml={report}"],
        cwd=unpacked,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert report.exists(), done.stdout[-3000:] + done.stderr[-3000:]
    cases = list(ElementTree.parse(report).iter("testcase"))
    failed = sorted({case.get("name") for case in cases for bad in ("failure", "error") if case.find(bad) is not None})
    skipped = [case for case in cases if case.find("skipped") is not None]
    print(
        f"{kind}: {len(cases) - len(failed) - len(skipped)} passed, {len(failed)} failed, {len(skipped)} do not apply:"
    )
    for case in skipped:
        print(f"  {case.get('name')}: {case.find('skipped').get('message')}")
    assert not failed and len(skipped) < len(cases), done.stdout[-6000:]
