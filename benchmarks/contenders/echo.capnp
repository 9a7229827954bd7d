# What the server of the contender pycapnp offers.
@0xe4b1c8a0f3d25796;

struct Record {
  id @0 :Int64;
  t @1 :Float64;
  pKw @2 :Float64;
  name @3 :Text;
  ok @4 :Bool;
}

interface Echo {
  number @0 (value :Int64) -> (value :Int64);
  record @1 (value :Record) -> (value :Record);
  data @2 (value :Data) -> (value :Data);
}
