"""The few things that the demo's model knows beside its town."""

from __future__ import annotations

COLOURS = "red green blue yellow orange purple pink brown black white grey".split()

COLOUR_OF = dict(
    pair.split(":")
    for pair in (
        "snow:white grass:green the-sky:blue a-lemon:yellow a-carrot:orange milk:white coal:black "
        "a-frog:green blood:red chocolate:brown a-ripe-banana:yellow a-strawberry:red the-sea:blue "
        "a-cloud:white a-flamingo:pink a-plum:purple an-elephant:grey a-crow:black a-swan:white honey:yellow"
    ).split()
)
COLOUR_OF = {thing.replace("-", " "): colour for thing, colour in COLOUR_OF.items()}

MIXED = {
    ("red", "yellow"): "orange",
    ("red", "blue"): "purple",
    ("blue", "yellow"): "green",
    ("red", "white"): "pink",
    ("black", "white"): "grey",
    ("red", "green"): "brown",
}

ANIMALS = [
    dict(zip(("animal", "sound", "young", "legs", "eats"), line.split(), strict=True))
    for line in """
cat meow kitten 4 fish
dog woof puppy 4 bones
cow moo calf 4 grass
sheep baa lamb 4 grass
horse neigh foal 4 hay
pig oink piglet 4 turnips
duck quack duckling 2 bread
hen cluck chick 2 corn
owl hoot owlet 2 mice
goat maa kid 4 leaves
frog croak tadpole 4 flies
lion roar cub 4 meat
""".strip().splitlines()
]

OPPOSITES = [
    tuple(pair.split("/"))
    for pair in (
        "big/small hot/cold up/down day/night old/young fast/slow wet/dry open/closed happy/sad loud/quiet "
        "light/dark full/empty hard/soft high/low long/short left/right early/late near/far rich/poor "
        "thick/thin sweet/sour clean/dirty strong/weak begin/end"
    ).split()
]

MONTHS = "January February March April May June July August September October November December".split()
SEASONS = {"winter": "cold", "spring": "fresh", "summer": "warm", "autumn": "windy"}

USER_NAMES = (
    "Mia Noah Emma Liam Zoe Adam Ruth Omar Lily Paul Nina Max Sara Tom Eva Igor Yuki Ravi Lucy Sam Nora Alex "
    "Maya Felix Julia Oscar Rosa Victor Wendy Amir Clara David Elena George Hana Ivan Jane Karl Laura Marco "
    "Olga Peter Quinn Rita Simon Tara Uma Vera Walter Xenia Yara Zack Bella Carlos Diana Erik Fatima "
    "Gina Hans "
    "Ines Jonas Kira Lars Mona Nils Otto Pia Rolf Sofia Theo Ursula Vincent Wanda Chris Maria John "
    "Mary Robert "
    "Linda James Susan Michael Karen William Nancy Thomas Lisa Daniel Betty Mark Helen Steven Sandra Kevin"
).split()

THINGS = (
    "football chess history music physics chemistry biology politics economics law medicine poetry opera "
    "ballet cinema television radio computers software Python Java Linux Windows Excel robots rockets "
    "satellites planets stars galaxies atoms electrons gravity magnets lasers engines turbines batteries "
    "bridges tunnels castles pyramids temples dinosaurs volcanoes earthquakes hurricanes glaciers deserts "
    "jungles oceans rivers islands whales sharks dolphins penguins tigers elephants snakes spiders bees "
    "ants butterflies mushrooms bacteria viruses vaccines vitamins cancer diabetes surgery yoga boxing "
    "tennis golf cricket baseball hockey skiing surfing swimming cycling marathons taxes banks stocks "
    "bonds bitcoin money inflation insurance contracts elections presidents kings queens emperors wars "
    "armies treaties religion philosophy ethics logic algebra geometry calculus statistics probability "
    "pizza sushi pasta curry tacos wine beer coffee sugar salt cars trains planes ships submarines "
    "bicycles motorcycles phones cameras telescopes microscopes clocks printers Shakespeare Einstein "
    "Mozart Picasso Newton Napoleon Caesar Cleopatra Darwin Beethoven Plato France Germany Spain Italy "
    "Japan China India Brazil Canada Mexico Egypt Kenya Norway Poland Turkey Greece Australia London "
    "Paris Berlin Rome Tokyo Madrid Moscow Chicago Texas California Europe Africa Asia Mars Jupiter "
    "Saturn quantum mechanics machine learning neural networks evolution photosynthesis electricity "
    "nuclear power solar energy climate change world peace stock market weather news homework car job "
    "health guitar novel movie recipe garden holiday airport wedding birthday salary lawyer engineer "
    "pilot actor singer dance paint cook drive sleep dream love time friend family planet moon sun ocean "
    "king president country city war code essay song film game team player doctorate brain heart blood "
    "pressure password website email internet robot "
).split()
"""Words of questions that it cannot answer, so that it learns to say so."""

NO_PLACES = [
    place.replace("-", " ")
    for place in (
        "airport harbour museum castle cinema zoo casino stadium hotel bank theatre hospital university "
        "prison tower lighthouse palace temple garage factory swimming-pool gym petrol-station train-station "
        "supermarket pharmacy restaurant pub circus court embassy "
    ).split()
]

NO_WARES = (
    "car computer phone boat guitar piano sofa bicycle camera watch coat shirt television fridge carpet "
    "tractor rocket sword violin tent ladder mirror bottle blanket umbrella telescope ring crown drum "
    "helmet "
).split()
