"""Version ids that guides and scripts of the hosted service print, by the model they belong to.

Who asks for one gets the current version of that base model.
"""

_IDS = {
    "llama-2-7b": (
        "4841472f9a9d279cf03ba0a8f633b13eccd0e0a033d3af0c9b58830982d33132",
        "527827021d8756c7ab79fde0abbfaac885c37a3ed5fe23c7465093f0878d55ef",
        "73001d654114dad81ec65da3b834e2f691af1e1526453189b7bf36fb3f32d0f9",
        "77dde5d6c56598691b9008f7d123a18d98f40e4b4978f8a72215ebfc2553ddd8",
        "bf0a2a692f015ee21527ed2668e338032c1f937b4fcfa1f217f5cd79bf33478c",
    ),
    "llama-2-7b-chat": (
        "13c3cdee13ee059ab779f0291d29054dab00a47dad8261375654de5540165fb0",
        "8e6975e5ed6174911a6ff3d60540dfd4844201974602551e10e9e87ab143d81e",
        "f1d50bb24186c52daae319ca8366e53debdaa9e0ae7ff976e918df752732ccc4",
    ),
    "llama-2-13b": ("078d7a002387bd96d93b0302a4c03b3f15824b63104034bfa943c63a8f208c38",),
    "llama-2-13b-chat": (
        "df7690f1994d94e96ad9d568eac121aecf50684a0b0963b25a41cc40061269e5",
        "f4e2de70d66816a838a89eeeb621910adffb0dd0baba3976c96980970978018d",
    ),
    "llama-2-70b-chat": (
        "02e509c789964a7ea8736978a43525956ef40397be9033abf9fd2badfe68c9e3",
        "2796ee9483c3fd7aa2e171d38f4ca12251a30609463dcfd4cd76703f22e96cdf",
        "2c1608e18606fad2812020dc541930f2d0495ce32eee50074220b87300bc16e1",
        "2d19859030ff705a87c746f7e96eea03aefb71f166725aee39692f1476566d48",
        "58d078176e02c219e11eb4da5a02a7830a283b14cf8f94537af893ccff5ee781",
    ),
}
OLD_VERSIONS = {version: name for name, versions in _IDS.items() for version in versions}
"""The base model's name by version id."""
