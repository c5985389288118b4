package shadow

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestParseState(t *testing.T) {
	deep := func(levels int) string {
		return `{"desired":` + strings.Repeat(`{"a":`, levels) + "1" + strings.Repeat("}", levels) + "}"
	}
	for name, tc := range map[string]struct {
		text string
		want Update
		err  error
	}{
		"desired":           {`{"desired":{"n":12345678901234567890.10,"gone":null}}`, Update{Desired: Object{"n": json.Number("12345678901234567890.10"), "gone": nil}}, nil},
		"nothing desired":   {`{"desired":{}}`, Update{Desired: Object{}}, nil},
		"clear":             {` {"desired":null}`, Update{ClearDesired: true}, nil},
		"five levels":       {deep(5), Update{Desired: Object{"a": Object{"a": Object{"a": Object{"a": Object{"a": json.Number("1")}}}}}}, nil},
		"six levels":        {deep(6), Update{}, ErrTooDeep},
		"empty":             {``, Update{}, ErrNotJSON},
		"broken":            {`{"desired":`, Update{}, ErrNotJSON},
		"two values":        {`{"desired":{}} {}`, Update{}, ErrNotJSON},
		"not UTF-8":         {"{\"desired\":{\"a\":\"\xff\"}}", Update{}, ErrNotJSON},
		"an array":          {`[]`, Update{}, ErrNotObject},
		"null":              {`null`, Update{}, ErrNotObject},
		"no member":         {`{}`, Update{}, ErrIncomplete},
		"reported":          {`{"reported":{"a":1}}`, Update{}, ErrIllegalNode},
		"reported as well":  {`{"desired":{"a":1},"reported":{"a":1}}`, Update{}, ErrIllegalNode},
		"a member unknown":  {`{"desired":{"a":1},"wanted":{}}`, Update{}, ErrIllegalNode},
		"desired an array":  {`{"desired":[1]}`, Update{}, ErrIllegalNode},
		"desired a string":  {`{"desired":"{}"}`, Update{}, ErrIllegalNode},
		"an empty key":      {`{"desired":{"":1}}`, Update{}, ErrIllegalKey},
		"a key twice":       {`{"desired":{"a":1,"a":2}}`, Update{}, ErrIllegalKey},
		"desired twice":     {`{"desired":{"a":1},"desired":null}`, Update{}, ErrIllegalKey},
		"larger than legal": {`{"desired":{"a":"` + strings.Repeat("x", MaxMessageBytes) + `"}}`, Update{}, ErrTooLarge},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := ParseState(tc.text)
			if !errors.Is(err, tc.err) {
				t.Fatalf("error %v, want %v", err, tc.err)
			}
			if _, ok := errors.AsType[*DocumentError](err); err != nil && !ok {
				t.Errorf("error of type %T", err)
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("update (-want +got):\n%s", diff)
			}
		})
	}
}

// An application is answered what it has sent, with the times of it, and nothing else
// of the shadow.
func TestAnswerToApplication(t *testing.T) {
	const old, new = `{"timestamp":1700000000000}`, `{"timestamp":1700000100500}`
	stored := Stored{
		Reported: `{"state":"closed"}`, Desired: `{"level":{"low":1,"high":9},"kept":true}`,
		Metadata: `{"desired":{"kept":` + old + `,"level":{"high":` + old + `,"low":` + old + `}},"reported":{"state":` + old + `}}`,
		Version:  12, Timestamp: 1700000000000,
	}
	for name, tc := range map[string]struct{ state, want string }{
		"fields": {
			`{"desired":{"state":"open","level":{"low":1,"high":10},"kept":null}}`,
			`{"state":{"desired":{"kept":null,"level":{"high":10,"low":1},"state":"open"}},` +
				`"metadata":{"desired":{"kept":` + new + `,"level":{"high":` + new + `,"low":` + old + `},"state":` + new + `}},"version":13,"timestamp":1700000100500}`,
		},
		"clear":   {`{"desired":null}`, `{"state":{"desired":null},"metadata":{},"version":13,"timestamp":1700000100500}`},
		"nothing": {`{"desired":{}}`, `{"state":{"desired":{}},"metadata":{"desired":{}},"version":13,"timestamp":1700000100500}`},
	} {
		t.Run(name, func(t *testing.T) {
			doc, err := Parse(stored)
			if err != nil {
				t.Fatal(err)
			}
			update, err := ParseState(tc.state)
			if err != nil {
				t.Fatal(err)
			}
			if err := doc.Update(update, time.UnixMilli(1700000100500)); err != nil {
				t.Fatal(err)
			}
			want := `{"type":"update","result":0,"timestamp":1700000100,"payload":` + tc.want + `}`
			if diff := cmp.Diff(want, string(AnswerUpdate(Message{Type: TypeUpdate, Update: update}, doc, 1700000100))); diff != "" {
				t.Errorf("answer (-want +got):\n%s", diff)
			}
		})
	}
}
