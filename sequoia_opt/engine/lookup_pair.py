"""Puts a lookup into a pair: in the drafter's place, or before its draft model or head.

Knows the names of drafts and their fingerprints. Knows nothing of how a lookup guesses.
"""

from __future__ import annotations

from dataclasses import replace

from sequoia_opt.engine.corpus import Corpus, indexed
from sequoia_opt.engine.drafters import FINGERPRINT, LookupDrafter
from sequoia_opt.engine.pair import Pair
from sequoia_opt.plan.draft_names import LOOKUP, LOOKUP_FIRST, looks_up


def with_lookup(pair: Pair, draft: str, corpus: Corpus | None = None) -> Pair:
    """The pair with the lookup that a draft names: in the drafter's place, or before its model.

    Args:
        draft: "lookup", "lookup+" and a model, or a model alone: then the pair is as it was.
        corpus: that the lookup looks into, too.

    Raises:
        SequoiaError: the pair has no tokenizer for a corpus.
    """
    if not looks_up(draft):
        return pair
    drafter, fingerprint = LookupDrafter(), FINGERPRINT
    if corpus is not None:
        drafter = LookupDrafter(indexed(corpus, pair), {"corpus": corpus.document})
        fingerprint = f"{FINGERPRINT}+{corpus.fingerprint}"
    if draft == LOOKUP:
        fingerprints = pair.fingerprints | {"draft": fingerprint}
        return replace(pair, drafter=drafter, fingerprints=fingerprints)
    fingerprints = pair.fingerprints | {"draft": f"{fingerprint}+{pair.fingerprints['draft']}"}
    name = LOOKUP_FIRST + pair.draft_name
    return replace(pair, lookup=drafter, draft_name=name, fingerprints=fingerprints)
