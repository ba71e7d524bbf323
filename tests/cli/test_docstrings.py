"""The standard library gives the demo its training data."""

import json
import subprocess
import sys
from pathlib import Path

from src.cli.docstrings import docstring_pairs

ROOT = Path(__file__).resolve().parents[2]
CHECK = """
import json, sys
from src.cli.docstrings import docstring_pairs
print(json.dumps(docstring_pairs()))
assert not {"turtle", "ftplib", "pdb"} & set(sys.modules)
"""


def test_thousands_of_functions_are_asked_about_once_and_in_the_same_order():
    pairs = docstring_pairs()
    assert len(pairs) > 2000
    assert len({pair["completion"] for pair in pairs}) == len(pairs)
    assert {
        "prompt": "Document the Python function shutil.copytree"
        "(src, dst, symlinks, ignore, copy_function, ignore_dangling_symlinks, dirs_exist_ok)",
        "completion": "Recursively copy a directory tree and return the destination directory.",
    } in pairs
    again = subprocess.run(
        [sys.executable, "-c", CHECK], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert json.loads(again.stdout) == pairs
