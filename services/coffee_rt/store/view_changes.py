"""What a definition changes in the catalogue, decided from what is there. Pure; both stores use it.

A name belongs to one owner (a file of the aggregators, or an object): whoever else defines it is left
alone, so that two definitions can't replace each other for ever. Another retention alone changes a view
where it is: a replacement could hold only what the orders still kept say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from coffee_rt.domain.views import ViewDefinition
from coffee_rt.store.view_contract import FILE_OWNER, NO_OWNER, ViewState


@dataclass(frozen=True, slots=True)
class ViewChange:
    """Steps in their order; all empty when nothing is to be done."""

    dropped: tuple[str, ...] = ()
    """Internal names of replacements that are no longer wanted."""
    retained: ViewState | None = None
    """The view that gets the definition's retention in its place."""
    is_created: bool = False
    """As the current view, or as the replacement of the one there is."""
    is_adopted: bool = False

    @property
    def is_needed(self) -> bool:
        return self != _NOTHING


_NOTHING = ViewChange()


def plan_change(
    definition: ViewDefinition, known: Sequence[ViewState], owner: str, *, is_adopting: bool
) -> ViewChange:
    """What makes `definition` the newest of its name. `known` has replacements before the views they
    replace (of all names)."""
    same_name = [state for state in known if state.definition.name == definition.name]
    if not same_name:
        return ViewChange(is_created=True)
    newest = same_name[0]
    is_adopted = newest.owner != owner
    if is_adopted and not may_adopt(newest.owner, is_adopting=is_adopting):
        return _NOTHING
    if newest.definition == definition:
        return ViewChange(is_adopted=is_adopted)
    replacements = tuple(state.internal for state in same_name if not state.is_current)
    for state in same_name:
        if _is_same_but_retention(state.definition, definition):
            return ViewChange(
                # The current one, wanted again while its replacement was being filled.
                dropped=replacements if state is not newest else (),
                retained=state if state.definition != definition else None,
                is_adopted=is_adopted,
            )
    return ViewChange(dropped=replacements, is_created=True, is_adopted=is_adopted)


def may_adopt(owner: str, *, is_adopting: bool) -> bool:
    """Whether a view of another owner may be taken over. Never from an object that still defines it."""
    return owner == NO_OWNER or (is_adopting and owner == FILE_OWNER)


def needs_refill(state: ViewState, definition: ViewDefinition) -> bool:
    """Whether a retention adds days that the view dropped deltas of."""
    return definition.retention_days > state.definition.retention_days


def _is_same_but_retention(one: ViewDefinition, other: ViewDefinition) -> bool:
    return replace(one, retention_days=other.retention_days) == other
