from __future__ import annotations

from sequoia_opt.measure.template import PLAIN, Template

USER = {"role": "user", "content": "Hi."}
SYSTEM = {"role": "system", "content": "Be brief."}


def test_labels_tell_templates_apart() -> None:
    templates = [
        Template(),
        Template(True),
        Template(True, "a"),
        Template(True, "b"),
        Template(True, None, {"enable_thinking": False}),
        Template(True, None, {"enable_thinking": True}),
    ]
    assert Template().label == ""
    assert len({template.label for template in templates}) == len(templates)


def test_a_conversation_gets_the_system_message_if_it_has_none() -> None:
    template = Template(system="Be kind.")
    assert template.conversation([USER]) == [{"role": "system", "content": "Be kind."}, USER]
    assert template.conversation([SYSTEM, USER]) == [SYSTEM, USER]
    assert PLAIN.conversation([USER]) == [USER]


def test_only_settings_that_differ_from_plain_prompts_are_recorded() -> None:
    assert PLAIN.document() == {}
    assert Template(True, "a", {"enable_thinking": False}).document() == {
        "chat": True,
        "system": "a",
        "template_options": {"enable_thinking": False},
    }
