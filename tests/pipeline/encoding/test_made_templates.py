"""Labels under made-up templates, of which it is known by construction what they write."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from cal_schemas.sample import Turn
from template_only import rendered

SPECIALS = ("<s>", "</s>", "<|u|>", "<|a|>", "<|end|>", "<|eos|>")


@dataclass(frozen=True, kw_only=True)
class Made:
    """A template's own words: before and behind a turn of each role, and how it writes an answer."""

    default_system: str
    user: str
    user_end: str
    header: str
    lead: str
    end: str
    tail: str
    last: str
    strips: str
    prompts: bool
    parts: bool

    def source(self) -> str:
        """As Jinja."""
        words = (
            "{%- set c = '' -%}{%- for p in m.content -%}{%- set ns.c = ns.c ~ p.text -%}{%- endfor -%}"
            if self.parts else "{%- set ns.c = '' ~ m.content -%}"
        )  # fmt: skip
        content = {"none": "ns.c", "both": "ns.c.strip()", "left": "ns.c.lstrip()", "lines": "ns.c.strip('\\n')"}
        written = content[self.strips]
        return (
            "{%- set ns = namespace(c='') -%}"
            f"{{%- if messages[0].role != 'system' -%}}{{{{ {self.default_system!r} }}}}{{%- endif -%}}"
            "{%- for m in messages -%}{%- set ns.c = '' -%}" + words +
            "{%- if m.role == 'system' -%}{{ ns.c ~ '\\n' }}"
            f"{{%- elif m.role == 'user' -%}}{{{{ {self.user!r} ~ ns.c ~ {self.user_end!r} }}}}"
            f"{{%- else -%}}{{{{ {self.header!r} ~ {self.lead!r} ~ {written} ~ {self.end!r} ~ {self.tail!r} }}}}"
            "{%- endif -%}{%- endfor -%}"
            f"{{%- if not add_generation_prompt -%}}{{{{ {self.last!r} }}}}{{%- endif -%}}"
            + (f"{{%- if add_generation_prompt -%}}{{{{ {self.header!r} }}}}{{%- endif -%}}" if self.prompts else "")
        )  # fmt: skip

    def write(self, messages: list[Turn]) -> tuple[str, list[str]]:
        """The text, and what of it is to be learned."""
        strip = {"none": str, "both": str.strip, "left": str.lstrip, "lines": lambda text: text.strip("\n")}
        text, learned = "" if messages[0].role == "system" else self.default_system, []
        for turn in messages:
            if turn.role == "system":
                text += f"{turn.content}\n"
            elif turn.role == "user":
                text += self.user + turn.content + self.user_end
            else:
                said = strip[self.strips](turn.content)
                thought = self.lead if self.prompts or self.lead.startswith("<think>") else ""
                text += self.header + self.lead + said + self.end + self.tail
                if turn.content.strip() and turn.supervised:
                    learned.append(thought + said + self.end)
        return text + self.last, learned


MADE = st.builds(
    Made,
    default_system=st.sampled_from(["", "You are A.\n", "<s>", "ASSISTANT: A "]),
    user=st.sampled_from(["<|u|>", "USER: ", "### Human: ", "[INST] "]),
    user_end=st.sampled_from(["<|end|>\n", " ", "\n", " [/INST]"]),
    header=st.sampled_from(["<|a|>\n", "ASSISTANT: ", "ASSISTANT:", " A: ", "### Assistant\n", "<|a|>"]),
    lead=st.sampled_from(["", "<think>\n\n</think>\n\n", "<think></think>"]),
    end=st.sampled_from(["<|end|>", "</s>", "<|end|></s>"]),
    tail=st.sampled_from(["", "\n", " "]),
    last=st.sampled_from(["", "<|eos|>"]),
    strips=st.sampled_from(["none", "both", "left", "lines"]),
    prompts=st.booleans(),
    parts=st.booleans(),
)
WORDS = st.one_of(
    st.sampled_from(["A", "s", ":", "ASSISTANT", "ASSISTANT: ", "USER: x", "<|a|>\n", "<|end|>", "</s>", "\n A \n",
                     "A.", "", "  ", "You are A.", "[/INST] A", "### Assistant\n", "<|eos|>"]),
    st.text(alphabet="A:s \n<|>", max_size=6),
)  # fmt: skip


@st.composite
def conversations(draw: st.DrawFn) -> list[Turn]:
    first = draw(st.sampled_from([[], ["system"], ["assistant"], ["system", "assistant"]]))
    question = draw(WORDS)
    return [Turn(role=role, content=draw(st.one_of(WORDS, st.just(question))), supervised=draw(st.integers(0, 4)) > 0)
            for role in [*first, *["user", "assistant"] * draw(st.integers(1, 3))]]  # fmt: skip


@settings(max_examples=400, derandomize=True, database=None)
@given(MADE, conversations())
def test_labels_are_what_the_template_writes_of_an_answer_behind_its_header_to_its_end(
    made: Made, messages: list[Turn]
) -> None:
    text, learned = made.write(messages)
    rendering = rendered(made.source(), messages, SPECIALS)
    assert rendering.text == text
    spans = rendering.label_spans
    assert [rendering.text[start:stop] for start, stop in spans] == learned
    assert all(earlier[1] <= later[0] for earlier, later in itertools.pairwise(spans))
