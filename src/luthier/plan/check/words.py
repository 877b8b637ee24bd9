"""Numbers as findings say them."""

from luthier.core.words import count as count
from luthier.core.words import duration as duration
from luthier.core.words import gigabytes as gigabytes
from luthier.core.words import percent as percent
