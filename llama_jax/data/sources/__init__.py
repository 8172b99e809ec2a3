"""The sources of the mixture: how each one's public dumps become cleaned documents."""
