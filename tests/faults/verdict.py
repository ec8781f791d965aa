"""What the judge says of a run: by invariant, how many things were looked at, and what must not be so."""

import json
from collections import Counter
from dataclasses import dataclass, field

from history import Json

SHOWN = 20


@dataclass(frozen=True, slots=True)
class Violation:
    """`subject`: of which message, record, phone …; `evidence`: ids, times, offsets."""

    invariant: str
    what: str
    subject: str
    evidence: Json = field(default_factory=dict)

    def __str__(self) -> str:
        told = ", ".join(f"{name} {value}" for name, value in self.evidence.items())
        return f"{self.invariant} {self.subject}: {self.what}" + (f" ({told})" if told else "")


@dataclass
class Finding:
    """One invariant. `counts`: what was looked at. Where one of `wanted` was never looked at, the finding says nothing
    of it."""

    invariant: str
    title: str
    wanted: tuple[str, ...] = ()
    counts: Counter[str] = field(default_factory=Counter)
    violations: list[Violation] = field(default_factory=list)

    @property
    def unseen(self) -> list[str]:
        return [what for what in self.wanted if not self.counts[what]]

    def count(self, what: str, number: int = 1) -> None:
        self.counts[what] += number

    def violate(self, what: str, subject: object, **evidence: object) -> None:
        shown = {name: value for name, value in evidence.items() if value is not None}
        self.violations.append(
            Violation(self.invariant, what, str(subject), json.loads(json.dumps(shown, default=str)))
        )

    def expect(self, holds: bool, what: str, subject: object, **evidence: object) -> None:
        if not holds:
            self.violate(what, subject, **evidence)


@dataclass
class Verdict:
    findings: list[Finding]
    facts: Json = field(default_factory=dict)
    """Figures of the run: messages, calls, webhooks, faults."""

    @property
    def violations(self) -> list[Violation]:
        return [one for finding in self.findings for one in finding.violations]

    @property
    def holds(self) -> bool:
        return not self.violations

    @property
    def red(self) -> list[str]:
        return [finding.invariant for finding in self.findings if finding.violations]

    @property
    def unseen(self) -> list[str]:
        """What was never looked at."""
        return [f"{one.invariant} {what}" for one in self.findings for what in one.unseen]

    def to_json(self) -> Json:
        return {
            "holds": self.holds,
            "facts": self.facts,
            "unseen": self.unseen,
            "invariants": {
                one.invariant: {
                    "title": one.title,
                    "counts": dict(one.counts),
                    "violations": [
                        {"what": each.what, "subject": each.subject, "evidence": each.evidence}
                        for each in one.violations
                    ],
                }
                for one in self.findings
            },
        }

    def table(self) -> str:
        rows = [("invariant", "violations", "looked at"), *(_row(one) for one in self.findings)]
        widths = [max(len(row[column]) for row in rows) for column in range(2)]
        lines = [f"{row[0]:<{widths[0]}}  {row[1]:>{widths[1]}}  {row[2]}" for row in rows]
        told = [f"  {each}" for one in self.findings for each in one.violations[:SHOWN]]
        hidden = sum(max(0, len(one.violations) - SHOWN) for one in self.findings)
        more = [f"  … and {hidden} more"] if hidden else []
        figures = ", ".join(f"{value:,} {name}" for name, value in self.facts.items() if isinstance(value, int))
        return "\n".join([figures, *lines, *told, *more])


def _row(one: Finding) -> tuple[str, str, str]:
    counted = [f"{number:,} {what}" for what, number in one.counts.items() if number]
    counted += [f"NO {what}" for what in one.unseen]
    return f"{one.invariant} {one.title}", str(len(one.violations)), ", ".join(counted)
