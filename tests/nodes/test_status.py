from tests.nodes.harness import Closet


def test_x(closet: Closet) -> None:
    pass
