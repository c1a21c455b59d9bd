"""Words for LIBERO's objects, furniture and their parts."""

NAMES: dict[str, tuple[str, ...]] = {
    "akita_black_bowl": ("black bowl", "dark bowl"),
    "white_bowl": ("white bowl",),
    "glazed_rim_porcelain_ramekin": ("ramekin", "small ramekin"),
    "plate": ("plate", "dish"),
    "cookies": ("cookie box", "box of cookies"),
    "alphabet_soup": ("alphabet soup", "can of alphabet soup"),
    "tomato_sauce": ("tomato sauce", "can of tomato sauce"),
    "cream_cheese": ("cream cheese", "box of cream cheese"),
    "butter": ("butter", "box of butter"),
    "milk": ("milk", "carton of milk"),
    "orange_juice": ("orange juice", "carton of orange juice"),
    "salad_dressing": ("salad dressing", "bottle of salad dressing"),
    "new_salad_dressing": ("salad dressing", "bottle of salad dressing"),
    "ketchup": ("ketchup", "bottle of ketchup"),
    "bbq_sauce": ("bbq sauce", "bottle of bbq sauce"),
    "chocolate_pudding": ("chocolate pudding", "box of chocolate pudding"),
    "wine_bottle": ("wine bottle", "bottle of wine"),
    "chefmate_8_frypan": ("frying pan", "pan"),
    "moka_pot": ("moka pot", "coffee maker"),
    "porcelain_mug": ("white mug", "white cup"),
    "red_coffee_mug": ("red mug", "red cup"),
    "white_yellow_mug": ("yellow and white mug", "yellow and white cup"),
    "black_book": ("black book", "dark book"),
    "yellow_book": ("yellow book",),
    "basket": ("basket",),
    "wooden_tray": ("tray", "wooden tray"),
    "flat_stove": ("stove", "cooker"),
    "wooden_cabinet": ("wooden cabinet", "brown cabinet"),
    "white_cabinet": ("white cabinet",),
    "microwave": ("microwave", "microwave oven"),
    "wine_rack": ("wine rack", "rack"),
    "desk_caddy": ("caddy", "desk caddy"),
    "wooden_two_layer_shelf": ("shelf", "wooden shelf"),
}
"""By LIBERO's category: the name, and others for it. Two categories of one name look alike."""

OPEN, ON = ("open", "closed"), ("on", "off")


def _drawers(cabinet: str) -> dict[str, tuple[str, tuple[str, str]]]:
    return {level: (f"{level} drawer of the {cabinet}", OPEN) for level in ("top", "middle", "bottom")}


PART_NAMES: dict[str, dict[str, tuple[str, tuple[str, str]]]] = {
    "wooden_cabinet": _drawers("wooden cabinet"),
    "white_cabinet": _drawers("white cabinet"),
    "flat_stove": {"button": ("stove", ON)},
    "microwave": {"microjoint": ("microwave", OPEN)},
    "wine_rack": {},
    "desk_caddy": {},
    "wooden_two_layer_shelf": {},
}
"""Furniture: by joint the part's name, and what it is called at either end of its range."""

PLACE_NAMES: dict[tuple[str, str], str] = {
    **{
        (f"{colour}_cabinet", f"{level}_region"): f"{level} drawer of the {colour} cabinet"
        for colour in ("wooden", "white")
        for level in ("top", "middle", "bottom")
    },
    **{
        ("desk_caddy", f"{side}_contain_region"): f"{side} compartment of the caddy"
        for side in ("left", "right", "front", "back")
    },
}
"""Parts of furniture that things lie in, by category and LIBERO's name of the region."""
IN = ("drawer", "compartment", "basket", "microwave", "tray", "bowl", "caddy", "mug", "pan", "ramekin")
"""What things are said to be in, rather than on; by what the name contains."""
