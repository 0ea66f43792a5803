"""The seam: a study folder's tables become Findings."""

from pathlib import Path

import pytest

from cvtune.errors import ConfigError
from cvtune.results import read_tables


def test_tables_that_were_never_written_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"lacks epochs.parquet, trials.parquet.*cvtune export"):
        read_tables(tmp_path)
