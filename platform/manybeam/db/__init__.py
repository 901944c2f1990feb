"""One database of our own: tables, migrations, and one small module for each kind of row.

`database` opens it, `tables` defines it, `migrations` bring an older one up to date. `audit`,
`locks`, `preferences`, `predictions` and `tokens` read and write its rows. `owner` names a process
and needs no SQL. Nothing here knows the zoo, and nothing is imported before it is needed.
"""
