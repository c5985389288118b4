package shadow

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseDesired(t *testing.T) {
	padding := func(bytes int) string { return `{"a":"` + strings.Repeat("x", bytes-8) + `"}` }
	tests := map[string]struct {
		text        string
		want        Object
		wantErr     error
		wantMessage string
	}{
		"seed sample":        {text: `{"state":"open"}`, want: Object{"state": "open"}},
		"empty object":       {text: ` {} `, want: Object{}},
		"all kinds":          {text: `{"a":null,"b":true,"c":"é\u00e9","d":[1,{"e":[]}]}`, want: Object{"a": nil, "b": true, "c": "éé", "d": []any{json.Number("1"), Object{"e": []any{}}}}},
		"digits kept":        {text: `{"a":9007199254740993,"b":1.50,"c":1E+2}`, want: Object{"a": json.Number("9007199254740993"), "b": json.Number("1.50"), "c": json.Number("1E+2")}},
		"surrogate pair":     {text: `{"a":"\ud83d\ude00"}`, want: Object{"a": "😀"}},
		"replacement char":   {text: `{"a":"\ufffd�\\ud800"}`, want: Object{"a": "��\\ud800"}},
		"five levels":        {text: `{"a":{"b":{"c":{"d":{"e":1}}}}}`, want: Object{"a": Object{"b": Object{"c": Object{"d": Object{"e": json.Number("1")}}}}}},
		"largest":            {text: padding(MaxBytes), want: Object{"a": strings.Repeat("x", MaxBytes-8)}},
		"same key elsewhere": {text: `{"a":{"a":1},"b":{"a":1}}`, want: Object{"a": Object{"a": json.Number("1")}, "b": Object{"a": json.Number("1")}}},

		"empty":               {text: ``, wantErr: ErrNotJSON, wantMessage: "not a JSON value: unexpected end of JSON input"},
		"cut off":             {text: `{"a":`, wantErr: ErrNotJSON, wantMessage: "not a JSON value (byte 5): unexpected end of JSON input"},
		"trailing value":      {text: `{} {}`, wantErr: ErrNotJSON, wantMessage: "not a JSON value (byte 4): invalid character '{' after top-level value"},
		"trailing comma":      {text: `{"a":[1,]}`, wantErr: ErrNotJSON, wantMessage: "not a JSON value (byte 9): invalid character ']' looking for beginning of value"},
		"comment":             {text: `{"a":1 /* */}`, wantErr: ErrNotJSON, wantMessage: "not a JSON value (byte 8): invalid character '/' after object key:value pair"},
		"NaN":                 {text: `{"a":NaN}`, wantErr: ErrNotJSON, wantMessage: "not a JSON value (byte 6): invalid character 'N' looking for beginning of value"},
		"invalid UTF-8":       {text: "{\"a\":\"�\xff\"}", wantErr: ErrNotJSON, wantMessage: "not a JSON value (byte 10): invalid UTF-8"},
		"half a pair":         {text: `{"a":{"b":"x\ud83dy"}}`, wantErr: ErrNotJSON, wantMessage: "not a JSON value at a.b (byte 20): a string holds half of a surrogate pair"},
		"pair reversed":       {text: `{"a":"\ude00\ud83d"}`, wantErr: ErrNotJSON, wantMessage: "not a JSON value at a (byte 19): a string holds half of a surrogate pair"},
		"half a pair in key":  {text: `{"\ud83d":1}`, wantErr: ErrNotJSON, wantMessage: "not a JSON value (byte 9): a string holds half of a surrogate pair"},
		"string":              {text: `"{}"`, wantErr: ErrNotObject, wantMessage: "not a JSON object: it is a string"},
		"array":               {text: `[{}]`, wantErr: ErrNotObject, wantMessage: "not a JSON object: it is an array"},
		"null":                {text: `null`, wantErr: ErrNotObject, wantMessage: "not a JSON object: it is null"},
		"number":              {text: `1`, wantErr: ErrNotObject, wantMessage: "not a JSON object: it is a number"},
		"duplicate key":       {text: `{"a":1,"b":{"c":1,"c":2}}`, wantErr: ErrIllegalKey, wantMessage: "illegal key at b.c (byte 21): the key stands twice in one object"},
		"duplicate escaped":   {text: `{"a":1,"\u0061":2}`, wantErr: ErrIllegalKey, wantMessage: "illegal key at a (byte 15): the key stands twice in one object"},
		"empty key":           {text: `{"a":[{"":1}]}`, wantErr: ErrIllegalKey, wantMessage: "illegal key at a[0] (byte 9): a key is empty"},
		"six levels":          {text: `{"a":{"b":{"c":{"d":{"e":{}}}}}}`, wantErr: ErrTooDeep, wantMessage: "more than 5 levels deep at a.b.c.d.e (byte 26)"},
		"arrays are levels":   {text: `{"a":[[[[[]]]]]}`, wantErr: ErrTooDeep, wantMessage: "more than 5 levels deep at a[0][0][0][0] (byte 10)"},
		"too large":           {text: padding(MaxBytes + 1), wantErr: ErrTooLarge, wantMessage: "larger than 16384 bytes: it has 16385 bytes"},
		"too large as stored": {text: `{"a":"` + strings.Repeat("\u2028", 4000) + `"}`, wantErr: ErrTooLarge, wantMessage: "larger than 16384 bytes: it would be stored with 24008 bytes"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := ParseDesired(tt.text)
			if !errors.Is(err, tt.wantErr) {
				t.Fatalf("error %v, want %v", err, tt.wantErr)
			}
			if err != nil {
				if _, ok := errors.AsType[*DocumentError](err); !ok {
					t.Errorf("error is a %T, want a *DocumentError", err)
				}
				if diff := cmp.Diff(tt.wantMessage, err.Error()); diff != "" {
					t.Errorf("message (-want +got):\n%s", diff)
				}
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("object (-want +got):\n%s", diff)
			}
		})
	}
}

func TestLongPathKeepsItsEnd(t *testing.T) {
	_, err := ParseDesired(`{"` + strings.Repeat("é", 4000) + `":{"last":{"":1}}}`)
	if err == nil || !strings.HasSuffix(strings.SplitN(err.Error(), " (", 2)[0], "é.last") || len(err.Error()) > 400 {
		t.Errorf("message %q, want a short one whose path ends in é.last", err)
	}
}

// FuzzCanonical compares with what encoding/json reads, and with what a document that
// is read and stored holds.
func FuzzCanonical(f *testing.F) {
	for _, seed := range []string{
		`{"b":1.0,"a":{"y":[null,true,{"k":-1e9}],"x":{}}}`, `{"a":1,"b":"é<\"\u2028"}`, "{\"a\":\"\u2028\"}", ` {"a" : 1}`, `{"a":1} `, `{}`, `{"a":0}`,
		`{"reported":{"a":{"timestamp":1}},"desired":{"b":{"timestamp":2}}}`, `{"desired":{"b":{"timestamp":2}},"reported":{"a":{"timestamp":1}}}`,
		`{"reported":{"a":1}}`, `{"reported":{},"desired":{"b":1}}`, `{"reported":{"a":1},"other":{"b":1}}`, `{"reported":1}`, `{"desired":{"b":1},"a":1}`,
		`{"\u0061":1,"\ud83d\ude00":"\ud83d"}`, `{"a":1,"a":2}`, `[1]`, `{"a":tru}`, "{\"a\":\"\xff\"}", `{"a":[1,{"b":[]}],"b":"x\\"}`,
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		got, err := CanonicalPart(text)
		object, parseErr := ParseDesired(text)
		if diff := cmp.Diff(fmt.Sprint(parseErr), fmt.Sprint(err)); diff != "" {
			t.Fatalf("error of a part (-ParseDesired +CanonicalPart):\n%s", diff)
		}
		if err == nil {
			decoder := json.NewDecoder(strings.NewReader(text))
			decoder.UseNumber()
			var want Object
			if err := decoder.Decode(&want); err != nil || !cmp.Equal(want, object) {
				t.Fatalf("it is\n%#v, encoding/json reads (error %v)\n%#v", object, err, want)
			}
			if want := (&Document{Desired: object}).Stored().Desired; got != want {
				t.Fatalf("the part is\n%s, want\n%s", got, want)
			}
			if want := string(encode(object)); len(object) > 0 && got != want {
				t.Fatalf("the part is\n%s, encoding/json writes\n%s", got, want)
			}
		}

		got, err = CanonicalMetadata(text)
		doc, parseErr := Parse(Stored{Metadata: text})
		if diff := cmp.Diff(fmt.Sprint(parseErr), fmt.Sprint(err)); diff != "" {
			t.Fatalf("error of metadata (-Parse +CanonicalMetadata):\n%s", diff)
		}
		if err == nil {
			if want := doc.Stored().Metadata; got != want {
				t.Fatalf("the metadata are\n%s, want\n%s", got, want)
			}
		}
	})
}
