package shadow

import (
	"testing"
	"time"
)

// FuzzMergeDesired feeds arbitrary texts through the parser and the merge.
func FuzzMergeDesired(f *testing.F) {
	for _, seed := range [][2]string{
		{`{"state":"open"}`, `{"state":"closed"}`},
		{`{"a":{"b":1,"c":[1,{"d":null}]}}`, `{"a":{"b":null,"c":{}}}`},
		{`{"a":{}}`, `{"a":{"b":{"c":null}}}`},
		{`{"a":1.0e2}`, `{"a":100,"":1}`},
		{`{"timestamp":1}`, `{"timestamp":{"timestamp":2}}`},
		{`{"a":"\ud83d\ude00\u2028"}`, `{"a":"\ud83d"}`},
		{`{}`, `[[[[[[`},
	} {
		f.Add(seed[0], seed[1])
	}
	f.Fuzz(func(t *testing.T, first, second string) {
		doc := &Document{}
		for i, text := range []string{first, second} {
			patch, err := ParseDesired(text)
			if err != nil {
				continue
			}
			version := doc.Version
			if _, err := doc.MergeDesired(patch, time.UnixMilli(int64(i))); err != nil {
				if i == 0 {
					t.Fatalf("a patch within the limits is refused by an empty shadow: %v", err)
				}
				continue
			}
			if doc.Version != version+1 {
				t.Fatalf("version %d after %d", doc.Version, version)
			}
			once := doc.Stored()

			changed, err := doc.MergeDesired(patch, time.UnixMilli(99))
			if changed || err != nil {
				t.Fatalf("the same patch again: changed %v, error %v", changed, err)
			}
			twice := doc.Stored()
			if twice.Desired != once.Desired || twice.Metadata != once.Metadata {
				t.Fatalf("the same patch again changed\n%+v to\n%+v", once, twice)
			}

			read, err := Parse(twice)
			if err != nil {
				t.Fatalf("reading what was stored: %v", err)
			}
			if again := read.Stored(); again != twice {
				t.Fatalf("stored, read and stored again:\n%+v\n%+v", twice, again)
			}
			if string(DeltaMessage(read, 1)) != string(DeltaMessage(doc, 1)) {
				t.Fatal("the delta differs after reading")
			}
			if (read.Delta() == nil) != (read.Desired == nil) {
				t.Fatal("with nothing reported, the delta is not the whole desired part")
			}
			read.Reported = read.Desired
			if delta := read.Delta(); delta != nil {
				t.Fatalf("delta %v although all that is desired is reported", delta)
			}
		}
	})
}
