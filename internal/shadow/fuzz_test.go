package shadow

import (
	"bytes"
	"encoding/json"
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

// FuzzMessage feeds arbitrary messages of a device through the parser, the rules
// and the answers.
func FuzzMessage(f *testing.F) {
	for _, seed := range [][2]string{
		{`{"type":"get","clientToken":"t"}`, `{"type":"update","state":{"reported":{"state":"open"}},"version":0,"clientToken":8480}`},
		{`{"type":"update","state":{"reported":{"a":{"b":1,"c":[1,{"d":null}]}}}}`, `{"type":"update","state":{"reported":{"a":{"b":null,"c":{}}},"desired":null},"version":1}`},
		{`{"type":"update","state":{"reported":{"timestamp":1}},"version":3}`, `{"type":"update","state":{"reported":{"timestamp":{"timestamp":2}}},"clientToken":"\u2028<\ud83d"}`},
		{`{"type":"update","state":{"desired":{"a":1}},"clientToken":{}}`, `{"type":"update","type":"get","state":[[[[[[[[`},
	} {
		f.Add(seed[0], seed[1])
	}
	f.Fuzz(func(t *testing.T, first, second string) {
		doc := &Document{Desired: Object{"a": "b"}}
		for i, text := range []string{first, second} {
			m, err := ParseMessage([]byte(text))
			if err != nil {
				if result := ResultOf(err); result == ResultOK || result == ResultInternal {
					t.Fatalf("the parser's error %v has the result %d", err, result)
				}
				wantAnswer(t, m, AnswerError(m, ResultOf(err), 1))
				continue
			}
			wantAnswer(t, m, AnswerGet(m, doc, 1))
			if m.Type != TypeUpdate {
				continue
			}
			was, version := doc.Stored(), doc.Version
			if err := doc.Update(m.Update, time.UnixMilli(int64(i))); err != nil {
				if doc.Stored() != was {
					t.Fatalf("refused with %v and changed all the same", err)
				}
				wantAnswer(t, m, AnswerVersion(m, doc, 1))
				continue
			}
			if doc.Version != version+1 {
				t.Fatalf("version %d after %d", doc.Version, version)
			}
			wantAnswer(t, m, AnswerUpdate(m, doc, 1))
			stored := doc.Stored()
			read, err := Parse(stored)
			if err != nil {
				t.Fatalf("reading what was stored: %v", err)
			}
			if again := read.Stored(); again != stored {
				t.Fatalf("stored, read and stored again:\n%+v\n%+v", stored, again)
			}
			if err := checkLimits(read.Reported); err != nil {
				t.Fatalf("stored over the limits: %v", err)
			}
		}
	})
}

// wantAnswer checks that an answer is one JSON object with the message's token.
func wantAnswer(t *testing.T, m Message, text []byte) {
	t.Helper()
	var answer struct {
		ClientToken json.RawMessage `json:"clientToken"`
	}
	if err := json.Unmarshal(text, &answer); err != nil {
		t.Fatalf("the answer %q is no JSON: %v", text, err)
	}
	if !bytes.Equal(answer.ClientToken, m.ClientToken) {
		t.Fatalf("the token %q came back as %q", m.ClientToken, answer.ClientToken)
	}
}
