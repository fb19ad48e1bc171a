"""The `snakemake` of this project's environment: Snakemake, with targets allowed at the end.

Snakemake's options of the form NAME=VALUE take every word that follows, so that
`snakemake --resources gpu=4 results/dora/knn.json` takes the target for a resource and fails.
Here a word without `=` ends such a list and is a target; and so is, after `--configfile`, a further
word that is no YAML file. Nothing else is changed. `make setup` puts this in place of
`.venv/bin/snakemake`; with any other Snakemake name targets first.
"""

import sys

PAIRS = {
    "--resources", "--res", "--config", "-C", "--set-threads", "--set-resources",
    "--default-resources", "--default-res", "--set-resource-scopes", "--set-scatter",
    "--groups", "--group-components",
}  # fmt: skip
FILES = {"--configfile", "--configfiles"}


def targets_first(words: list[str]) -> list[str]:
    """Move the words that end a list of NAME=VALUE pairs to the front."""
    targets, rest, in_pairs, in_files = [], [], False, False
    for number, word in enumerate(words):
        if word == "--":
            return targets + rest + words[number:]
        if word.startswith("-"):
            in_pairs, in_files = word in PAIRS, word in FILES
        elif (in_pairs and "=" not in word) or (
            in_files and words[number - 1] not in FILES and not word.endswith((".yaml", ".yml"))
        ):
            targets.append(word)
            continue
        rest.append(word)
    return targets + rest


if __name__ == "__main__":
    from snakemake.cli import main

    sys.argv[1:] = targets_first(sys.argv[1:])
    main()
