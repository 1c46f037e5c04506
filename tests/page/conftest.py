"""One browser for all tests of the page, since it takes seconds to start."""

import pytest
from browser import chromium


@pytest.fixture(scope="session")
def browser():
    with chromium() as found:
        yield found
