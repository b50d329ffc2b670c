"""The page in the browser: `answers` computes what it shows, `models` holds what it asks, `page` lays it out."""
