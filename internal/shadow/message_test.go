package shadow

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseMessage(t *testing.T) {
	long := strings.Repeat("x", MaxBytes)
	tests := map[string]struct {
		text       string
		want       Message
		wantResult Result
		wantError  string // a part of it
	}{
		"get":            {text: `{"type":"get","clientToken":"t"}`, want: Message{Type: "get", ClientToken: json.RawMessage(`"t"`)}},
		"token a number": {text: ` { "clientToken" : 8480 , "type" : "get" } `, want: Message{Type: "get", ClientToken: json.RawMessage(`8480`)}},
		"token as it was written": {
			text: `{"type":"get","clientToken":"\u0041<\/é\u2028"}`,
			want: Message{Type: "get", ClientToken: json.RawMessage(`"\u0041<\/é\u2028"`)},
		},
		"token with many digits": {text: `{"type":"get","clientToken":-1.50E+400}`, want: Message{Type: "get", ClientToken: json.RawMessage(`-1.50E+400`)}},
		"no token":               {text: `{"type":"get"}`, want: Message{Type: "get"}},
		"update": {
			text: `{"type":"update","state":{"reported":{"state":"open"}},"version":12,"clientToken":"t"}`,
			want: Message{Type: "update", ClientToken: json.RawMessage(`"t"`), Update: Update{Reported: Object{"state": "open"}, Version: 12}},
		},
		"update without version": {
			text: `{"type":"update","state":{"reported":{"a":null,"n":9007199254740993}}}`,
			want: Message{Type: "update", Update: Update{Reported: Object{"a": nil, "n": json.Number("9007199254740993")}}},
		},
		"acknowledgement": {
			text: `{"type":"update","state":{"desired":null},"version":0}`,
			want: Message{Type: "update", Update: Update{ClearDesired: true}},
		},
		"acknowledgement with a report": {
			text: `{"type":"update","state":{"reported":{},"desired":null}}`,
			want: Message{Type: "update", Update: Update{Reported: Object{}, ClearDesired: true}},
		},
		"members that no rule knows": {
			text: `{"type":"update","state":{"reported":{},"x":[1]},"timestamp":{"y":1}}`,
			want: Message{Type: "update", Update: Update{Reported: Object{}}},
		},
		"five levels reported": {
			text: `{"type":"update","state":{"reported":{"a":{"b":{"c":{"d":1}}}}}}`,
			want: Message{Type: "update", Update: Update{Reported: Object{"a": Object{"b": Object{"c": Object{"d": json.Number("1")}}}}}},
		},

		"empty":               {text: ``, wantResult: 5004, wantError: "not a JSON value"},
		"no JSON":             {text: `{"type":"get","clientToken":"t"`, wantResult: 5004, wantError: "not a JSON value"},
		"binary":              {text: "\x00\xff\xfe{", wantResult: 5004, wantError: "invalid UTF-8"},
		"two documents":       {text: `{"type":"get"}{"type":"get"}`, wantResult: 5004, wantError: "not a JSON value"},
		"no object":           {text: `["get"]`, wantResult: 5004, wantError: "it is an array"},
		"no type":             {text: `{"clientToken":"t"}`, want: Message{ClientToken: json.RawMessage(`"t"`)}, wantResult: 5004, wantError: "at type"},
		"other type":          {text: `{"type":"delete","clientToken":"t"}`, want: Message{ClientToken: json.RawMessage(`"t"`)}, wantResult: 5004, wantError: "at type"},
		"type a number":       {text: `{"type":1}`, wantResult: 5004, wantError: "at type"},
		"token an object":     {text: `{"type":"get","clientToken":{}}`, want: Message{Type: "get"}, wantResult: 5004, wantError: "clientToken: it is an object"},
		"token null":          {text: `{"type":"get","clientToken":null}`, want: Message{Type: "get"}, wantResult: 5004, wantError: "clientToken: it is null"},
		"no state":            {text: `{"type":"update"}`, want: Message{Type: "update"}, wantResult: 5004, wantError: "at state"},
		"state no object":     {text: `{"type":"update","state":"open"}`, want: Message{Type: "update"}, wantResult: 5004, wantError: "at state"},
		"version a string":    {text: `{"type":"update","state":{"reported":{}},"version":"1"}`, want: Message{Type: "update"}, wantResult: 5004, wantError: "at version"},
		"version negative":    {text: `{"type":"update","state":{"reported":{}},"version":-1}`, want: Message{Type: "update"}, wantResult: 5004, wantError: "at version"},
		"version a fraction":  {text: `{"type":"update","state":{"reported":{}},"version":1.5}`, want: Message{Type: "update"}, wantResult: 5004, wantError: "at version"},
		"empty state":         {text: `{"type":"update","state":{}}`, want: Message{Type: "update"}, wantResult: 5003, wantError: "neither reported nor desired"},
		"reported null":       {text: `{"type":"update","state":{"reported":null}}`, want: Message{Type: "update"}, wantResult: 5003, wantError: "at state.reported: it is null"},
		"reported an array":   {text: `{"type":"update","state":{"reported":[]}}`, want: Message{Type: "update"}, wantResult: 5003, wantError: "at state.reported: it is an array"},
		"desired of a device": {text: `{"type":"update","state":{"desired":{"a":1}}}`, want: Message{Type: "update"}, wantResult: 5003, wantError: "at state.desired"},
		"empty key":           {text: `{"type":"update","state":{"reported":{"":1}},"clientToken":7}`, want: Message{Type: "update", ClientToken: json.RawMessage(`7`)}, wantResult: 5003, wantError: "a key is empty"},
		"duplicate key":       {text: `{"type":"update","state":{"reported":{"a":1,"a":2}},"clientToken":7}`, want: Message{Type: "update", ClientToken: json.RawMessage(`7`)}, wantResult: 5003, wantError: "at state.reported.a"},
		"duplicate token":     {text: `{"type":"get","clientToken":1,"clientToken":2}`, want: Message{Type: "get", ClientToken: json.RawMessage(`2`)}, wantResult: 5003, wantError: "at clientToken"},
		"five levels of objects": {
			text: `{"type":"update","state":{"reported":{"a":{"b":{"c":{"d":{}}}}}},"clientToken":7}`,
			want: Message{Type: "update", ClientToken: json.RawMessage(`7`), Update: Update{Reported: Object{"a": Object{"b": Object{"c": Object{"d": Object{}}}}}}},
		},
		"six levels":           {text: `{"type":"update","state":{"reported":{"a":{"b":{"c":{"d":{"e":[]}}}}}},"clientToken":7}`, want: Message{Type: "update", ClientToken: json.RawMessage(`7`)}, wantResult: 5002, wantError: "at state.reported.a.b.c.d.e"},
		"very deep":            {text: strings.Repeat("[", 9000) + strings.Repeat("]", 9000), wantResult: 5002, wantError: "more than 5 levels"},
		"too large to be read": {text: `{"type":"get","x":"` + long + long + `"}`, want: Message{Type: "get"}, wantResult: 5006, wantError: "the message has"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := ParseMessage([]byte(tt.text))
			if result := ResultOf(err); result != tt.wantResult {
				t.Errorf("result %d (error %v), want %d", result, err, tt.wantResult)
			}
			if tt.wantError != "" && (err == nil || !strings.Contains(err.Error(), tt.wantError)) {
				t.Errorf("error %v, want one with %q", err, tt.wantError)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("message (-want +got):\n%s", diff)
			}
		})
	}
}
