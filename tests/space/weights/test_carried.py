from tunemath.space.weights.carried import carry


def test_tokenizer_and_template_travel_and_weights_do_not(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    goes = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
            "chat_template.jinja", "tokenizer.model", "merges.txt", "modeling_own.py")  # fmt: skip
    for name in (*goes, "model.safetensors", "README.md", "training_args.bin"):
        (source / name).write_text(f"the source's {name}")
    carry(source, target)
    assert {p.name: p.read_text() for p in target.iterdir()} == {
        n: f"the source's {n}" for n in goes
    }


def test_a_config_that_is_there_stays_and_other_files_are_the_sources(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    for folder in (source, target):
        folder.mkdir()
        for name in ("config.json", "generation_config.json"):
            (folder / name).write_text(folder.name)
    carry(source, target)
    assert (target / "config.json").read_text() == "target"
    assert (target / "generation_config.json").read_text() == "source"
