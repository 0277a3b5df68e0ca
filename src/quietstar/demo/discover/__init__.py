"""`quietstar demo --discover`: can the reward find a thought that pretraining has hardly shown?"""
