"""How large the batch is: as given, by a rule that follows the run's FLOP, or the critical one."""

from __future__ import annotations

from dataclasses import dataclass

from autotune.frontier.run import TOKENS_PER_PARAMETER, near, rule_batch_tokens
from autotune.meshes.transformer import TransformerShape

BATCH_RULES = ("fixed", "paper", "deepseek", "critical")


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRule:
    """`rule` "fixed": `batch_tokens`; "paper" and "deepseek": from the run's FLOP; "critical": `critical_tokens`.

    `batch_tokens` and `critical_tokens` are None where nobody gave them; `scale` multiplies whatever the rule says.
    """

    rule: str = "fixed"
    batch_tokens: float | None = None
    critical_tokens: float | None = None
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.rule not in BATCH_RULES:
            raise ValueError(f"batch_rule={self.rule!r} must be one of {', '.join(BATCH_RULES)}")
        if self.rule == "fixed" and self.batch_tokens is None:
            raise ValueError("batch_tokens is missing; give it, e.g. 4M, or another batch rule")
        if self.rule != "fixed" and self.batch_tokens is not None:
            raise ValueError(f"batch_tokens says the batch already: it does not go with batch_rule={self.rule}")
        if self.rule == "critical" and self.critical_tokens is None:
            raise ValueError("batch_rule=critical needs critical_batch_tokens")
        if not 2**-10 <= self.scale <= 2**10:
            raise ValueError(f"batch_scale={self.scale} must be from 1/1024 to 1024")

    def wanted_tokens(self, transformer: TransformerShape, tokens: float | None) -> float:
        """Tokens of one step before rounding. `tokens` of the whole run; None: 20 a parameter (Hoffmann et al. 2022).

        The rules take C = 6 x active parameters x tokens; they are stated for dense models (Llama-like counts of
        active parameters), and are not multiplied by the square root of the experts here.
        """
        if self.rule == "fixed":
            assert self.batch_tokens is not None
            return self.batch_tokens * self.scale
        if self.rule == "critical":
            assert self.critical_tokens is not None
            return self.critical_tokens * self.scale
        active = transformer.layers * (transformer.attention_parameters + transformer.active_mlp_parameters)
        flop = 6.0 * active * (tokens or TOKENS_PER_PARAMETER * transformer.parameters)
        return rule_batch_tokens({"paper": "default"}.get(self.rule, self.rule), flop, 1) * self.scale

    def sequences(self, transformer: TransformerShape, seq: int, tokens: float | None) -> int:
        """Sequences of one step: exactly as asked where they are whole, else the nearest number that divides well.

        >>> from autotune.meshes.transformer import TransformerShape
        >>> sizes = dict(layers=2, d_model=64, heads=4, kv_heads=2, head_dim=16, d_ff=128, vocab=256)
        >>> tiny = TransformerShape(name="t", **sizes)
        >>> BatchRule(batch_tokens=4e6).sequences(tiny, 4096, None)
        1024
        """
        wanted = self.wanted_tokens(transformer, tokens) / seq
        if not 0.5 < wanted < 2**53:
            raise ValueError(
                f"batch of {wanted * seq:,.0f} tokens: must be at least half a sequence of {seq} and fewer than 2^53"
            )
        return int(wanted) if wanted >= 1 and wanted == int(wanted) else near(wanted)
