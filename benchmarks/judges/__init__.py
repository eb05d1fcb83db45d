"""How near a judge's client comes to the ideal, with other HTTP clients in the same turns."""
