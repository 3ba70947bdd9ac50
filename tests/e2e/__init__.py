"""The product as users type it."""
