"""What a review shows at each address. Templates are given cards, which do not know whose an answer is."""

from urllib.parse import urlencode

from luthier.core.errors import UsageError
from luthier.review.asking import Review
from luthier.web.site import Site

SCALE = range(1, 6)


def who(site: Site, review: Review) -> str:
    """Where a reviewer says who he or she is, and how far each has come."""
    return site.page("review/who.html", review=review, progress=review.progress())


def row(site: Site, review: Review, reviewer: str, pair: str) -> str:
    """One row with its two answers."""
    card = review.card(reviewer, pair)
    beside = {name: review.beside(pair, step) for name, step in (("earlier", -1), ("later", 1))}
    links = {name: _of_row(found, reviewer) for name, found in beside.items() if found}
    given = {"num": len(review.draw.pairs), "done": review.progress().get(reviewer, 0), "links": links, "scale": SCALE}
    return site.page("review/row.html", review=review, card=card, reviewer=reviewer, **given)


def done(site: Site, review: Review, reviewer: str) -> str:
    """The end, once nothing is left to rate."""
    given = {"done": review.progress().get(reviewer, 0), "first": _of_row(review.draw.pairs[0].id, reviewer)}
    return site.page("review/done.html", review=review, reviewer=reviewer, **given)


def address(review: Review, reviewer: str) -> str:
    """Of the next row that the reviewer has not rated, or of the end."""
    pair = review.next(reviewer)
    return _of_row(pair, reviewer) if pair else f"/done?{urlencode({'reviewer': reviewer})}"


def taken_back(review: Review, reviewer: str) -> str:
    """The address of the row whose rating was taken back; raises UsageError where there is none."""
    pair = review.ratings.undo(reviewer)
    if pair is None:
        raise UsageError(f"{reviewer} has rated nothing that could be taken back")
    return _of_row(pair, reviewer)


def _of_row(pair: str, reviewer: str) -> str:
    return f"/rows/{pair}?{urlencode({'reviewer': reviewer})}"
