"""What is said when Ray does not start."""

import pytest

from cvtune import cluster
from cvtune.errors import ClusterError


@pytest.mark.parametrize(
    ("address", "advice"), [("", "The same command again is safe"), ("ray-head:6379", "Unset RAY_ADDRESS")]
)
def test_a_ray_that_does_not_start_is_an_error_of_the_cluster(
    monkeypatch: pytest.MonkeyPatch, address: str, advice: str
) -> None:
    def timed_out(**_: object) -> None:
        raise Exception("The current node timed out during startup.")

    monkeypatch.setattr(cluster.ray, "init", timed_out)
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ClusterError, match=f"timed out during startup.*{advice}"), cluster.cluster():
        pass
