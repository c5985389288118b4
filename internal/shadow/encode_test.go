package shadow

import (
	"testing"
	"time"
)

// What is written without reflection is what encoding/json writes.
func TestEncode(t *testing.T) {
	for _, text := range []string{
		`{}`, `{"b":1.0,"a":{"y":[null,true,false,{"k":-1e9},[]],"x":{}}}`,
		`{"a":"é<&>\"\\\u2028\u2029\u0000\b\f\n\r\t~\u007f\ud83d\ude00"}`, `{"\u2028\"":1}`,
		`{"timestamp":123456789012345678901234567890.10}`,
	} {
		object, err := parseObject(text, unlimited)
		if err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		if got, want := encodeObject(object), string(encode(object)); got != want {
			t.Errorf("it is\n%s, encoding/json writes\n%s", got, want)
		}
		for _, meta := range []Metadata{{Reported: object}, {Desired: object}, {object, object}, {}} {
			if got, want := encodeMetadata(meta), string(encode(meta)); got != want {
				t.Errorf("metadata are\n%s, encoding/json writes\n%s", got, want)
			}
		}
	}
}

func BenchmarkStored(b *testing.B) {
	doc := &Document{}
	patch, err := ParseDesired(`{"battery":90,"firmware":"4.2.11","position":{"lat":52.3702,"lon":4.8952},"state":"closed"}`)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		_ = doc.Update(Update{Reported: patch, Desired: patch}, time.UnixMilli(1))
		doc.Stored()
	}
}
