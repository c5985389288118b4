package qcloud

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// What a Signer signs is accepted, in the query and in the body, each time as another
// call.
func TestSigner(t *testing.T) {
	for _, version := range []Version{V2, V3} {
		for _, method := range []string{http.MethodGet, http.MethodPost} {
			t.Run(version.String()+" "+method, func(t *testing.T) {
				host := testHost
				if version == V3 {
					host = "iotcloud.tencentcloudapi.com"
				}
				signer := Signer{Version: version, Host: host, SecretID: testID, SecretKey: testKey}
				v, clock := newTestVerifier(Options{})
				for range 2 {
					form := EncodeForm(signer.Sign(method, clock.Now(), map[string]string{"Action": "CancelTask", version.Parameter("id"): "a b+&=%"}))
					r := httptest.NewRequest(method, "http://"+host+version.Path(), strings.NewReader(form))
					r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
					if method == http.MethodGet {
						r = httptest.NewRequest(method, "http://"+host+version.Path()+"?"+form, http.NoBody)
					}
					request, refused := answer(t, v, version, r)
					if got, ok := request.(*CancelTask); !ok || got.ID != "a b+&=%" {
						t.Errorf("the request is %#v, the answer %s", request, refused)
					}
				}
			})
		}
	}
}

// A parameter that is given stays, and is signed; a signature that is given stays too.
func TestSignerKeepsWhatIsGiven(t *testing.T) {
	given := map[string]string{"SecretId": "other", "Timestamp": "1", "Nonce": "2", "SignatureMethod": HmacSHA256}
	signer := Signer{Version: V2, Host: testHost, SecretID: testID, SecretKey: testKey}
	all := signer.Sign(http.MethodPost, time.Unix(testTime, 0), given)
	for name, want := range given {
		if all[name] != want {
			t.Errorf("%s is %q, want %q", name, all[name], want)
		}
	}
	if want := Sign(HmacSHA256, testKey, StringToSign("POST", testHost, "/v2/index.php", given)); all["Signature"] != want {
		t.Errorf("Signature is %q, want %q", all["Signature"], want)
	}
	given["Signature"] = ""
	if all := signer.Sign(http.MethodPost, time.Unix(testTime, 0), given); all["Signature"] != "" {
		t.Errorf("Signature is %q, want none", all["Signature"])
	}
}
