package webhook_test

import (
	"encoding/pem"
	"net/http/httptest"
	"testing"

	"batchtask.dev/operator/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m, testenv.WithWebhooks()) }

// certificate returns what a caller must trust to call the server.
func certificate(server *httptest.Server) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
}
