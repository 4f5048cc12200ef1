import gc

import mnist_lightning


def test_what_is_imported_is_not_searched_for_garbage() -> None:
    assert mnist_lightning.__version__
    assert gc.get_freeze_count() > 100_000
    assert gc.isenabled()
