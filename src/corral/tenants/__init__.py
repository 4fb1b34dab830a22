"""Tenants: who asks, what they may do, how much they may use, and the secrets that they keep with us."""
