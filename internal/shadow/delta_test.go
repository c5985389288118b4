package shadow

import (
	"encoding/json"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestDeltaMessage(t *testing.T) {
	tests := map[string]struct {
		stored Stored
		want   string
	}{
		"sample": {
			stored: Stored{
				Reported: `{"state":"closed","battery":90}`, Desired: `{"state":"open"}`,
				Metadata: `{"reported":{"state":{"timestamp":1509092895971},"battery":{"timestamp":1509092895971}},"desired":{"state":{"timestamp":1509092900001}}}`,
				Version:  12, Timestamp: 1509092900001,
			},
			want: `{"type":"delta","timestamp":1509092901,"payload":{"state":{"state":"open"},"metadata":{"state":{"timestamp":1509092900001}},"version":12,"timestamp":1509092900001}}`,
		},
		"nothing reported": {
			stored: Stored{Desired: `{"a":{"b":1}}`, Metadata: `{"desired":{"a":{"b":{"timestamp":5}}}}`, Version: 1, Timestamp: 6},
			want:   `{"type":"delta","timestamp":1509092901,"payload":{"state":{"a":{"b":1}},"metadata":{"a":{"b":{"timestamp":5}}},"version":1,"timestamp":6}}`,
		},
		"only what differs, nested": {
			stored: Stored{Reported: `{"a":{"b":1,"c":[1,2],"x":9},"d":"on"}`, Desired: `{"a":{"b":1,"c":[2,1]},"d":"on","e":null}`, Metadata: `{"desired":{"a":{"b":{"timestamp":1},"c":{"timestamp":2}},"d":{"timestamp":3},"e":{"timestamp":4}}}`, Version: 2, Timestamp: 6},
			want:   `{"type":"delta","timestamp":1509092901,"payload":{"state":{"a":{"c":[2,1]},"e":null},"metadata":{"a":{"c":{"timestamp":2}},"e":{"timestamp":4}},"version":2,"timestamp":6}}`,
		},
		"metadata lost: the document's time": {
			stored: Stored{Desired: `{"a":{"b":1,"timestamp":2},"c":{}}`, Metadata: `{"desired":{"a":{"timestamp":3}}}`, Version: 2, Timestamp: 6},
			want:   `{"type":"delta","timestamp":1509092901,"payload":{"state":{"a":{"b":1,"timestamp":2},"c":{}},"metadata":{"a":{"b":{"timestamp":6},"timestamp":{"timestamp":6}},"c":{"timestamp":6}},"version":2,"timestamp":6}}`,
		},
		"nothing desired":                    {stored: Stored{Reported: `{"a":1}`}},
		"equal":                              {stored: Stored{Reported: `{"a":1.0,"b":{"c":[1,{"d":true}]},"e":{}}`, Desired: `{"a":1,"b":{"c":[1e0,{"d":true}]},"e":{}}`}},
		"the device reports more":            {stored: Stored{Reported: `{"a":{"b":1,"c":2},"d":1}`, Desired: `{"a":{"b":1}}`}},
		"an empty object asks for an object": {stored: Stored{Reported: `{"a":{"b":1}}`, Desired: `{"a":{}}`}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got := DeltaMessage(mustParse(t, tt.stored), 1509092901)
			if diff := cmp.Diff(tt.want, string(got)); diff != "" {
				t.Errorf("message (-want +got):\n%s", diff)
			}
			if tt.want == "" && got != nil {
				t.Error("message is empty, want nil")
			}
		})
	}
}

func TestSameNumber(t *testing.T) {
	tests := []struct {
		a, b string
		want bool
	}{
		{"1", "1", true},
		{"1", "1.0", true},
		{"1", "1e0", true},
		{"100", "1e2", true},
		{"100", "1E+2", true},
		{"0.001", "1e-3", true},
		{"12.50", "125e-1", true},
		{"0", "-0", true},
		{"0", "0.00e5", true},
		{"0", "0e99999999999999999999", true},
		{"1e99999999999999999999", "1e99999999999999999999", true},
		{"1", "-1", false},
		{"1", "2", false},
		{"1", "10", false},
		{"1", "0.1", false},
		{"0.1", "0.10000000000000001", false},
		{"9007199254740993", "9007199254740992", false},
		{"1e99999999999999999999", "1e99999999999999999998", false},
	}
	for _, tt := range tests {
		t.Run(tt.a+" "+tt.b, func(t *testing.T) {
			if got := equal(json.Number(tt.a), json.Number(tt.b)); got != tt.want {
				t.Errorf("equal %v, want %v", got, tt.want)
			}
			if got := equal(json.Number(tt.b), json.Number(tt.a)); got != tt.want {
				t.Errorf("the other way round: equal %v, want %v", got, tt.want)
			}
		})
	}
	if equal(json.Number("1"), "1") || equal("1", json.Number("1")) || equal(nil, false) {
		t.Error("values of different kinds are equal")
	}
}
